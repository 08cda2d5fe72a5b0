"""Ways of choosing side by side: what each loses at every number of layers, which are best."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Choice, JudgedText, Judgement, Sweep, Way
from depthcut.reporting.words import ERRORS, duration, plain, span

STANDING_COLUMNS = ("way", "behind the best", "at most", "best or tied", "time", "forward passes")


@dataclass(frozen=True)
class Cell:
    """A way at a number of layers, on one text."""

    way: Way
    choice: Choice
    said: Judgement
    best: bool
    """No way has a lower loss."""
    tied: bool
    """Its paired difference to the best is below two standard errors: chance may be all of it."""


@dataclass(frozen=True)
class Standing:
    """A way over all numbers of layers and texts, among the ways that chose."""

    way: Way
    behind: float
    """Its log-perplexity over the best way's, less 1, in the mean."""
    most_behind: float
    """The same where it is largest."""
    leads: int
    """How often it is the best, or not told apart from it."""
    places: int
    """Of so many: numbers of layers, times texts."""


def cells(sweep: Sweep, judged: JudgedText, count: int) -> list[Cell]:
    """The ways that chose so many layers, in the sweep's order."""
    found = [
        (way, choice, judged.find(choice.removed))
        for way in sweep.ways
        if (choice := way.find(count)) is not None
    ]
    if not found:
        return []
    best = min((said for _, _, said in found), key=lambda said: said.loss.value)
    return [
        Cell(way, choice, said, said.removed == best.removed, _tied(judged, said, best))
        for way, choice, said in found
    ]


def cells_by_way(sweep: Sweep, judged: JudgedText) -> dict[str, list[Cell | None]]:
    """The cells of each way, by number of layers; None where it did not choose so many."""
    rows: dict[str, list[Cell | None]] = {way.name: [] for way in sweep.ways}
    for count in sweep.counts:
        column = {cell.way.name: cell for cell in cells(sweep, judged, count)}
        for name, row in rows.items():
            row.append(column.get(name))
    return rows


def standings(sweep: Sweep) -> list[Standing]:
    """All ways that chose, the one that is least behind the best first.

    Those that did not choose every number of layers come last: what they left out is the hardest.
    """
    behind: dict[str, list[float]] = {way.name: [] for way in sweep.ways}
    leads = dict.fromkeys(behind, 0)
    for judged in sweep.judged:
        for count in sweep.counts:
            row = cells(sweep, judged, count)
            least = min((cell.said.loss.value for cell in row), default=1.0)
            for cell in row:
                behind[cell.way.name].append(cell.said.loss.value / least - 1)
                leads[cell.way.name] += cell.tied
    found = [
        Standing(way, math.fsum(values) / len(values), max(values), leads[way.name], len(values))
        for way in sweep.ways
        if (values := behind[way.name])
    ]
    return sorted(found, key=lambda each: (-each.places, each.behind))


def standing_rows(sweep: Sweep) -> list[tuple[str, ...]]:
    """The standings as they are shown, under STANDING_COLUMNS."""
    return [
        (
            each.way.name,
            percent(each.behind),
            percent(each.most_behind),
            f"{each.leads} of {each.places}",
            duration(each.way.seconds) if each.way.seconds else "none",
            passes(each.way.forwards),
        )
        for each in standings(sweep)
    ]


def taken(way: Way, count: int) -> str:
    """The layers that a way takes: "3–5 and 12"; a dash where it did not choose so many."""
    choice = way.find(count)
    return "–" if choice is None else span(choice.removed).partition(" ")[2]


def some_counts(counts: Sequence[int], most: int) -> list[int]:
    """At most so many numbers of layers, evenly spread, the first and the last among them."""
    if len(counts) <= most:
        return list(counts)
    step = (len(counts) - 1) / (most - 1)
    return [counts[round(place * step)] for place in range(most)]


def passes(forwards: float) -> str:
    """Forward passes: few with a decimal."""
    return plain(forwards, 1 if 0 < forwards < 10 else 0)


def percent(share: float) -> str:
    """0.0213 as "2.1 %"."""
    return f"{plain(100 * share, 1)} %"


def _tied(judged: JudgedText, said: Judgement, best: Judgement) -> bool:
    if said.removed == best.removed:
        return True
    difference = judged.difference(said, best)
    return difference.value < ERRORS * difference.stderr
