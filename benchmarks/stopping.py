"""Surveys that stop once their choice is settled: how often rightly, and how soon.

    python benchmarks/stopping.py [--quick] [--text FILE] [--survey FILE]

The model is surveyed once, on the whole text (or the survey is given). Then the text is drawn
anew: as many of its sequences, with replacement, 20 times; on each draw the stopping runs over
the survey's own rows, batch by batch, for 1 to 10 layers by each criterion. A choice that it
calls settled is wrong if the whole text (or all of the draw) chooses otherwise: at most 1 in 20
may be, at confidence 0.95. Prints a table; keeps the last result in
benchmarks/results/stopping.json.
"""

import argparse
import statistics
from array import array
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import results
from depthcut import api
from depthcut.records import Block, Scores, Survey, TextFacts, read_record
from depthcut.settings import SurveySettings
from depthcut.surveying.criteria import CRITERIA
from depthcut.surveying.stopping import Settling
from depthcut.text.sequences import Sequences

CRITERIA_ASKED = ("angular", "block-influence")
SIZES = range(1, 11)


class Outcome(NamedTuple):
    """Of one draw."""

    settled: bool
    as_draw: bool
    """Whether all of the draw chooses the same."""
    as_text: bool
    """Whether the whole text does."""
    read: float
    """Share of the tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", default="builtin")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--survey", type=Path, help="of such a text, made before")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--batch", type=int, default=4, help="sequences between looks, at least")
    asked = parser.parse_args()
    settings = SurveySettings(
        text=asked.text,
        tokens=asked.tokens // 4 if asked.quick else asked.tokens,
        context=asked.context,
        criteria=CRITERIA_ASKED,
    )
    survey = (
        read_record(asked.survey, Survey) if asked.survey else api.survey(asked.model, settings)
    )
    rows = []
    print(
        f"{'criterion':<16} layers  settled  wrong: of draw, of text   tokens read: median, range"
    )
    for name in CRITERIA_ASKED:
        scores = survey.find(name, "all")
        for size in SIZES:
            found = [
                outcome(scores, size, seed, asked.confidence, asked.batch)
                for seed in range(asked.draws)
            ]
            done = [each for each in found if each.settled]
            read = [each.read for each in found]
            row = {
                "criterion": name,
                "layers": size,
                "settled": len(done),
                "settled_other_than_draw": sum(not each.as_draw for each in done),
                "settled_other_than_text": sum(not each.as_text for each in done),
                "same_as_draw": sum(each.as_draw for each in found),
                "same_as_text": sum(each.as_text for each in found),
                "read_median": round(statistics.median(read), 3),
                "read_least": round(min(read), 3),
                "read_most": round(max(read), 3),
                "read_mean": round(statistics.mean(read), 3),
            }
            rows.append(row)
            print(
                f"{name:<16} {size:>6}  {len(done):>3}/{asked.draws}  "
                f"{row['settled_other_than_draw']:>14}, {row['settled_other_than_text']:>7}   "
                f"{row['read_median']:>19.0%}, {row['read_least']:.0%} to {row['read_most']:.0%}"
            )
    settled = sum(int(str(row["settled"])) for row in rows)
    total: dict[str, object] = {
        "model": survey.model.source,
        "tokens": survey.text.tokens,
        "sequences": survey.text.sequences,
        "confidence": asked.confidence,
        "draws": asked.draws,
        "settled_share": round(settled / len(rows) / asked.draws, 3),
        "settled_wrong_share_of_draw": share(rows, "settled_other_than_draw", settled),
        "settled_wrong_share_of_text": share(rows, "settled_other_than_text", settled),
        "stated_share": round(1 - asked.confidence, 6),
        "read_mean": round(statistics.mean(float(str(row["read_mean"])) for row in rows), 3),
    }
    for key, value in total.items():
        print(f"{key:<30}{value}")
    if not asked.quick:
        results.keep("stopping", {**total, "rows": rows})


def outcome(scores: Scores, size: int, seed: int, confidence: float, batch: int) -> Outcome:
    values = per_sequence(scores)
    count = len(values)
    drawn = torch.randint(count, (count,), generator=torch.Generator().manual_seed(seed))
    criterion, layers = CRITERIA[scores.criterion], len(scores.mean)
    facts = TextFacts(source="draw", digest="", sequences=count, tokens=count)
    stand_ins = Sequences(facts, tuple(torch.zeros(count, 1)), (0,) * count)

    def asking() -> Settling:
        return Settling(
            scores.criterion,
            criterion,
            count=size,
            layers=layers,
            confidence=confidence,
            sequences=stand_ins,
        )

    def choice(of: Tensor) -> tuple[Block, ...]:
        settling = asking()
        settling.enough(count, {(scores.criterion, "all"): list(of)})
        return settling.record().removed

    settling, read = asking(), list(values[drawn])
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        if settling.enough(stop - start, {(scores.criterion, "all"): read[:stop]}):
            break
    found = settling.record()
    return Outcome(
        found.settled,
        found.removed == choice(values[drawn]),
        found.removed == choice(values),
        found.tokens / found.of_tokens,
    )


def per_sequence(scores: Scores) -> Tensor:
    """(sequences, entries) float64."""
    width = sum(len(row) for row in scores.mean)
    return torch.tensor(array("f", scores.per_sequence)).double().reshape(-1, width)


def share(rows: list[dict[str, object]], key: str, settled: int) -> float:
    return round(sum(int(str(row[key])) for row in rows) / max(1, settled), 4)


if __name__ == "__main__":
    main()
