"""Writes docs/architectures.md from the kept result of benchmarks/architectures.py.

python -m benchmarks.architectures_page
"""

import json
import re
from collections import defaultdict
from pathlib import Path

from tests.every_type import UNBUILDABLE

from depthcut.architectures.table import ARCHITECTURES

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "benchmarks" / "results" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"
GROUPS = {
    "model types": "every model type, tiny, six layers",
    "variants": "further settings of some types",
    "older files": "files without the lists that config classes fill in",
    "recipes": "further configurations of 84 types, where they are there",
}


def main() -> None:
    result = json.loads(SOURCE.read_text(encoding="utf-8"))
    PAGE.write_text(page(result), encoding="utf-8")


def page(result: dict) -> str:
    refusals: defaultdict[str, set[str]] = defaultdict(set)
    unsound, better = [], set()
    for case, cuts in result["cuts"].items():
        for cut in cuts.values():
            kind, _, why = cut["depthcut"].partition(": ")
            if kind == "refused":
                refusals[reason(why)].add(case.removeprefix("recipe ").removeprefix("older "))
            elif kind != "exact":
                unsound.append(f"* {case} without {cut['removed']}: {cut['depthcut']}")
            if cut.get("mergekit") == "exact" and kind != "exact":
                better.add(case)
    by_count = sorted(refusals.items(), key=lambda each: (-len(each[1]), each[0]))
    lines = [
        *HEAD,
        *counts(result["counts"]),
        "",
        f"Models with a cut that is exact for mergekit {result['mergekit']} and not for depthcut: "
        f"{len(better)}{''.join(f', {case}' for case in sorted(better))}.",
        "",
        *(["Wrong, to be mended:", "", *unsound, ""] if unsound else []),
        "## What is refused, and why",
        "",
        "Where another removal of as many layers works, the message names the nearest one.",
        "",
        "| why | types |",
        "|---|---|",
        *(f"| {why} | {names(types)} |" for why, types in by_count),
        "",
        "## What cannot be built tiny here",
        "",
        "They are in the table, and unproved.",
        "",
        "| type | why |",
        "|---|---|",
        *(f"| `{name}` | {why} |" for name, why in sorted(UNBUILDABLE.items())),
        "",
        "## Every type of the table",
        "",
        f"{names(set(ARCHITECTURES))}.",
    ]
    return "\n".join(lines) + "\n"


HEAD = (
    "# Which models can be cut",
    "",
    "Written by `python -m benchmarks.architectures_page` from the result of",
    "`python -m benchmarks.architectures`, which builds a tiny random model of every type of",
    "transformers' lists of causal and image-text models, makes three cuts (the first single layer",
    "that may go, layers 2–3, layers 1 and 4) and compares: *exact* is a folder that plain",
    "transformers loads with no missing, unexpected or misshapen key and whose logits are bitwise",
    "those of the whole model whose removed layers pass their input on, at once and token by token",
    "with a cache. Beside it mergekit's passthrough on the same cuts.",
    "",
    "A type that is not in the table gets an entry that is derived from its tensors and config:",
    "such a cut is finished only once it loads and each kept layer is built as it was.",
    "",
)


def counts(kept: dict[str, dict[str, int]]) -> list[str]:
    head = "| what is cut | by | cuts | exact | refused | wrong | crash |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for key, row in kept.items():
        group, tool = key.rsplit(", ", 1)
        numbers = [row.get(kind, 0) for kind in ("exact", "refused", "wrong", "crash")]
        cells = " | ".join(str(number) for number in (sum(numbers), *numbers))
        lines.append(f"| {GROUPS.get(group, group)} | {tool} | {cells} |")
    return lines


def reason(message: str) -> str:
    """A refusal without the numbers that only its model has."""
    text = message.split("; the nearest removal", maxsplit=1)[0]
    text = re.sub(r"^[\w.-]+: (?=every|its|which|a )", "", text)
    text = re.sub(
        r"layer \d+ uses what layer \d+ computes.*",
        "a layer uses what a removed one computes",
        text,
    )
    text = re.sub(
        r"would have to give \[.*\]", "would have to give a pattern that they cannot", text
    )
    return text.replace("|", "\\|")


def names(types: set[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(types))


if __name__ == "__main__":
    main()
