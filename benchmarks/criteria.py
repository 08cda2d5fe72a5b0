"""How good is each criterion's choice? Perplexity after the cut, for 1 to N removed layers.

    python benchmarks/criteria.py --calibrate train.txt --judge valid.txt [--quick]

Surveys the model once on the calibration text, plans 1 to `--most` layers by every criterion at
the last and at all tokens, slices, and judges each distinct result on the other text. Prints a
Markdown table; keeps the last result in benchmarks/results/criteria.json.
"""

import argparse
import tempfile
from pathlib import Path

import depthcut
import results
from depthcut.evaluation.quality import judge
from depthcut.model.loading import load
from depthcut.records import Block
from depthcut.settings import EvaluateSettings, LoadSettings
from depthcut.text.documents import open_text
from depthcut.text.sequences import read_sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--calibrate", required=True)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--most", type=int, default=10)
    parser.add_argument("--calibrate-tokens", type=int, default=32768)
    parser.add_argument("--judge-tokens", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, 3 layers")
    options = parser.parse_args()
    share = 4 if options.quick else 1
    survey_settings = depthcut.SurveySettings(
        text=options.calibrate, tokens=options.calibrate_tokens // share
    )
    judge_settings = EvaluateSettings(text=options.judge, tokens=options.judge_tokens // share)

    survey = depthcut.survey(options.model, survey_settings)
    untouched = load(options.model, LoadSettings())
    source = open_text(judge_settings)
    if untouched.tokenizer is None:
        raise SystemExit(f"{options.model} has no tokenizer")
    sequences = read_sequences(source, judge_settings, untouched.tokenizer)

    def perplexity(model: str | Path) -> tuple[float, float]:
        qualities, _ = judge({"cut": load(model, LoadSettings())}, sequences, batch_size=8)
        found = qualities["cut"].perplexity
        return round(found.value, 3), round(found.stderr, 3)

    columns = [(scores.criterion, scores.tokens) for scores in survey.scores]
    known: dict[tuple[Block, ...], tuple[float, float]] = {}
    rows = {}
    for drop in range(1, (3 if options.quick else options.most) + 1):
        for criterion, tokens in columns:
            settings = depthcut.PlanSettings(drop=drop, criterion=criterion, tokens=tokens)
            plan = depthcut.plan(survey, settings)
            if plan.removed not in known:
                with tempfile.TemporaryDirectory() as folder:
                    depthcut.slice(options.model, plan, Path(folder, "cut"))
                    known[plan.removed] = perplexity(Path(folder, "cut"))
            rows[f"{drop} {criterion} {tokens}"] = {
                "removed": plan.words,
                "perplexity": known[plan.removed][0],
                "stderr": known[plan.removed][1],
            }
            print(drop, criterion, tokens, rows[f"{drop} {criterion} {tokens}"], flush=True)
    whole = perplexity(options.model)
    print(f"\nuntouched: {whole[0]} ± {whole[1]}\n")
    print("| removed | " + " | ".join(f"{c}, {t}" for c, t in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for drop in range(1, (3 if options.quick else options.most) + 1):
        cells = [rows[f"{drop} {c} {t}"] for c, t in columns]
        texts = [f"{cell['perplexity']:.1f} ({cell['removed'].split(' (')[0]})" for cell in cells]
        print(f"| {drop} | " + " | ".join(texts) + " |")
    results.keep(
        "criteria",
        {
            "settings": {k: str(v) for k, v in vars(options).items()},
            "untouched": {"perplexity": whole[0], "stderr": whole[1]},
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
