"""Searches and sweeps in sentences and rows: what they found, what it took, how sure that is."""

from dataclasses import dataclass

from depthcut.records import JudgedText, Search, Sweep
from depthcut.reporting.sweep_tables import (
    Cell,
    Standing,
    cells_by_way,
    passes,
    percent,
    standings,
    taken,
)
from depthcut.reporting.words import (
    ERRORS,
    duration,
    estimate,
    numbers,
    plain,
    score,
    short_source,
    span,
)

_CLOSE = 0.02
"""Of log-perplexity: a way that is less behind the best in the mean is as good for most uses."""
_OBJECTIVES = {"kl": "KL divergence from the untouched model", "loss": "loss"}


@dataclass(frozen=True)
class Found:
    """A row of the table of a search's choices."""

    count: int
    layers: str
    lost: str
    divergence: str
    forwards: str
    second: str
    """The runner-up's layers, and how it differs; empty: there is none."""


@dataclass(frozen=True)
class Entry:
    """A cell of the table of ways."""

    text: str
    best: bool = False
    tied: bool = False


def search_story(search: Search) -> list[str]:
    """What a search did and took."""
    settings, cost = search.settings, search.cost
    least = _OBJECTIVES[settings.objective]
    sentences = [
        f"A {settings.method} search ran the model without some of its layers, to find those whose "
        f"removal makes the {least} least.",
        f"It took {duration(cost.seconds)} and the work of {plain(cost.forwards, 0)} forward "
        f"passes over the text: {cost.layer_passes:,} passes of a sequence through a layer, "
        f"{cost.head_passes:,} through the head.",
    ]
    if not search.complete:
        sentences.append("It stopped at its budget: there may be better choices, and larger ones.")
    return sentences


def search_rows(search: Search) -> list[Found]:
    """The best choice of each number of layers, beside the next best."""
    rows = []
    for point in search.frontier:
        second = ""
        if point.runners_up:
            other = point.runners_up[0]
            clear = other.difference.value > ERRORS * other.difference.stderr
            judged = "worse" if clear else "not distinguishable"
            second = f"{span(other.removed, other.zeroed)}: {judged}"
        rows.append(
            Found(
                count=search.count(point),
                layers=numbers(point.removed, point.zeroed),
                lost=estimate(point.loss_difference, sign=True),
                divergence=estimate(point.kl_divergence),
                forwards=plain(point.cost.forwards, 0) if point.cost else "–",
                second=second,
            )
        )
    return rows


def sweep_story(sweep: Sweep) -> list[str]:
    """Which way came out best, and which is the cheapest that comes close."""
    every = standings(sweep)
    if not every:
        return []
    counts, texts = sweep.counts, len(sweep.judged)
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    judges = f"{texts} texts" if texts > 1 else "a text"
    first = every[0]
    sentences = [
        f"{len(sweep.ways)} ways chose {many} of {sweep.model.layers} layers on "
        f"{short_source(sweep.calibration)}, and were judged on {judges} that they did not see.",
        f"Closest to the best at every number of layers came {first.way.name}: "
        f"{percent(first.behind)} more log-perplexity than the best in the mean, "
        f"{percent(first.most_behind)} at most, for {_cost(first)}.",
    ]
    close = [each for each in every if each.behind < _CLOSE]
    cheapest = min(close, key=lambda each: (each.way.seconds, each.behind), default=first)
    if cheapest is not first:
        sentences.append(
            f"The cheapest that is less than {percent(_CLOSE)} behind in the mean is "
            f"{cheapest.way.name}: {percent(cheapest.behind)}, for {_cost(cheapest)}."
        )
    return sentences


def perplexity_rows(sweep: Sweep, judged: JudgedText) -> list[tuple[str, list[Entry]]]:
    """For each way its perplexities, by number of layers."""
    return [
        (name, [_entry(cell) for cell in row]) for name, row in cells_by_way(sweep, judged).items()
    ]


def taken_rows(sweep: Sweep) -> list[tuple[str, list[str]]]:
    """For each way the layers that it takes, by number of layers."""
    return [(way.name, [taken(way, count) for count in sweep.counts]) for way in sweep.ways]


def _entry(cell: Cell | None) -> Entry:
    if cell is None:
        return Entry("–")
    return Entry(score(cell.said.perplexity.value), cell.best, cell.tied)


def _cost(standing: Standing) -> str:
    way = standing.way
    if not way.seconds:
        return "nothing"
    return f"{duration(way.seconds)} and {passes(way.forwards)} forward passes over its text"
