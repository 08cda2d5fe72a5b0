"""What repair and healing bring back: untouched, cut, repaired, healed, and healed from each.

    python benchmarks/heal.py DATA OUT [--steps 195] [--quick]

DATA holds wikitext2/train.txt, wikitext2/valid.txt, c4/train.jsonl, c4/prefix_completion.jsonl and
the benchmarks' files. Cuts SmolLM2 by hand, repairs it, and heals the cut and the repaired model
with the same tokens, by all weights and by LoRA; what lies in OUT already is not made again, so a
killed run goes on. Judges all on text that nothing was trained or chosen on and on questions, and
prints what share of the lost log-perplexity and of the lost accuracy came back, and the loss on
held-out text at each budget. Keeps the last result in benchmarks/results/heal.json.
"""

import argparse
import math
from pathlib import Path

import results
from depthcut import api
from depthcut.records import Evaluation, HealRecord, read_record
from depthcut.settings import (
    EvaluateSettings,
    HealMethod,
    HealSettings,
    PlanSettings,
    RepairSettings,
)

MODEL = "smollm2"
TASKS = ("arc_easy", "hellaswag", "piqa", "lambada_openai")
"""Of the standard ones those that the untouched model beats chance on."""
CONTEXT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--remove", default="12-18")
    parser.add_argument("--steps", type=int, default=195, help="of 4 sequences of 256 tokens")
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--limit", type=int, default=300, help="questions of each task")
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, no questions")
    asked = parser.parse_args()
    steps = max(2, asked.steps // 10) if asked.quick else asked.steps
    made = models(asked.data, asked.out, asked.remove, steps, asked.methods.split(","))
    judging = EvaluateSettings(
        text=tuple(
            str(asked.data / name)
            for name in ("wikitext2/valid.txt", "c4/prefix_completion.jsonl[prefix]")
        ),
        tokens=24576,
        context=CONTEXT,
        new_tokens=0,
        tasks=() if asked.quick else TASKS,
        data=str(asked.data),
        limit=asked.limit,
    )
    record = api.evaluate(made, judging, out=asked.out / "evaluation.json", overwrite=True)
    rows = table(record)
    curves = {name: curve(asked.out / name) for name in made if "healed" in name}
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    for name, each in curves.items():
        print(name, "  ".join(f"{tokens:,}: {loss:.4f}" for tokens, loss in each))
    if not asked.quick:
        total = {"model": MODEL, "removed": asked.remove, "steps": steps, "limit": asked.limit}
        results.keep("heal", {**total, "rows": rows, "held_out_loss_by_tokens": curves})


def models(data: Path, out: Path, remove: str, steps: int, methods: list[str]) -> dict[str, str]:
    """The chain, each link made unless it is there."""
    texts = (f"{data / 'wikitext2/train.txt'}:1", f"{data / 'c4/train.jsonl'}:1")
    plan = api.plan(MODEL, PlanSettings(remove=remove))
    made = {"untouched": MODEL}
    if not (out / "cut").exists():
        api.slice(MODEL, plan, out / "cut")
    if not (out / "repaired").exists():
        repairing = RepairSettings(text=texts, tokens=32768, context=CONTEXT)
        api.repair(MODEL, plan, out / "repaired", repairing)
    made |= {name: str(out / name) for name in ("cut", "repaired")}
    for method in methods:
        for start in ("cut", "repaired"):
            name = f"{start}-healed-{method}"
            made[name] = str(out / name)
            if not (out / name).exists():
                api.heal(out / start, out / name, healing(method, texts, steps), announce=print)
    return made


def healing(method: HealMethod, texts: tuple[str, ...], steps: int) -> HealSettings:
    return HealSettings(
        text=texts,
        method=method,
        teacher="parent",
        loss="kl:1,next-token:0.5",
        steps=steps,
        batch_size=4,
        context=CONTEXT,
        eval_every=max(1, steps // 10),
    )


def table(record: Evaluation) -> list[dict[str, object]]:
    """A row for each model; shares are of what the cut lost."""
    rows: list[dict[str, object]] = [{"model": each.name} for each in record.models]
    for on_text in record.by_text:
        source = Path(on_text[0].source).name
        losses = [each.loss.value for each in on_text]
        for row, loss in zip(rows, losses, strict=True):
            row[f"perplexity {source}"] = round(math.exp(loss), 2)
            row[f"back {source}"] = round((losses[1] - loss) / (losses[1] - losses[0]), 3)
    if record.tasks is not None:
        for average in record.tasks.averages:
            for row in rows:
                if row["model"] == average.model:
                    row["accuracy"] = round(average.value.value, 4)
    return rows


def curve(folder: Path) -> list[tuple[int, float]]:
    """What training made small, on text held out from it, by tokens."""
    record = read_record(folder / "depthcut.json", HealRecord)
    each = record.trained_tokens / record.losses[-1][0]
    return [(round(each * judged.step), judged.loss) for judged in record.judgements]


if __name__ == "__main__":
    main()
