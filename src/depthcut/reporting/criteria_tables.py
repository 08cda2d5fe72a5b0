"""Criteria side by side: what each says of every layer, what it would take, how alike they rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Block, Scores, Survey, merged
from depthcut.reporting.words import score as shown

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class CriteriaTable:
    """Cells as they are shown, a row each with its heading first."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def choices(survey: Survey, *, largest: int | None = None) -> CriteriaTable:
    """What each criterion would take: the best block of each size, or as many lowest layers.

    Args:
        survey: All criteria that it measured.
        largest: Of the sizes; default: half of the layers.
    """
    most = max(1, survey.model.layers // 2) if largest is None else largest
    sizes = [size for size in _SIZES if size <= most]
    rows = []
    for scores in comparable(survey):
        cells = (_places(lowest(scores, size)) for size in sizes)
        rows.append((scores.criterion, *cells))
    return CriteriaTable(("criterion", *map(str, sizes)), tuple(rows))


def lowest(scores: Scores, size: int) -> tuple[Block, ...]:
    """The block of so many layers that scores lowest, or so many single layers; () if none is."""
    if scores.scope != "block":
        order = sorted(range(len(scores.mean)), key=lambda layer: scores.mean[layer][0])
        return merged(order[:size])
    starts = [start for start, row in enumerate(scores.mean) if len(row) >= size]
    if not starts:
        return ()
    start = min(starts, key=lambda start: scores.mean[start][size - 1])
    return ((start, start + size),)


def _places(blocks: Sequence[Block]) -> str:
    """ "12–14, 17"; a dash where there is nothing."""
    if not blocks:
        return "–"
    return ", ".join(
        str(start) if stop - start == 1 else f"{start}–{stop - 1}" for start, stop in blocks
    )


def layer_table(survey: Survey) -> CriteriaTable:
    """The score of each single layer by each criterion."""
    every = comparable(survey)
    rows = [
        (str(layer), *(shown(each.mean[layer][0]) if each.mean[layer] else "–" for each in every))
        for layer in range(survey.model.layers)
    ]
    return CriteriaTable(("layer", *(each.criterion for each in every)), tuple(rows))


def rank_table(survey: Survey) -> CriteriaTable:
    """Spearman's rank correlation between criteria, over single layers."""
    every = comparable(survey)
    rows = []
    for first in every:
        cells = []
        for second in every:
            pairs = [
                (one[0], other[0])
                for one, other in zip(first.mean, second.mean, strict=True)
                if one and other
            ]
            found = spearman([one for one, _ in pairs], [other for _, other in pairs])
            cells.append("–" if found is None else f"{found:.2f}".replace("-", "−"))
        rows.append((first.criterion, *cells))
    return CriteriaTable(("criterion", *(each.criterion for each in every)), tuple(rows))


def comparable(survey: Survey) -> list[Scores]:
    """One of each criterion: at all tokens, or where else it was taken."""
    found: dict[str, Scores] = {}
    for tokens in ("all", "last"):
        for each in survey.scores:
            if each.tokens == tokens:
                found.setdefault(each.criterion, each)
    order = dict.fromkeys(each.criterion for each in survey.scores)
    return [found[name] for name in order]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation, ties sharing their mean rank: 1 the same order, −1 the reverse.

    None for fewer than three values, or where all are equal: there is no order to compare.
    """
    if len(first) < 3:
        return None
    ranks = [_ranks(first), _ranks(second)]
    middle = (len(first) - 1) / 2
    apart = [[rank - middle for rank in each] for each in ranks]
    spread = math.prod(math.sqrt(math.fsum(each * each for each in side)) for side in apart)
    if not spread:
        return None
    return math.fsum(one * other for one, other in zip(*apart, strict=True)) / spread


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks, at = [0.0] * len(values), 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for place in range(at, end + 1):
            ranks[order[place]] = (at + end) / 2
        at = end + 1
    return ranks
