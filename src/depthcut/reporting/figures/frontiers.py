"""Figures of what is lost against how many layers go: one line for each way of choosing."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Estimate, JudgedText, Search, Sweep, Way
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.theme import (
    SERIES,
    WIDTH,
    Spec,
    chart,
    colour_legend,
    dots,
    light,
    mark,
    unlabelled,
)
from depthcut.reporting.sweep_tables import standings
from depthcut.reporting.words import estimate, numbers, score, short_source, span

HEIGHT = 250
_HIGHEST = 60.0
"""Times the lowest value, at most: what lies above is cut off, or it would flatten all others."""
_DASHES = {"search": [1, 0], "criterion": [5, 3], "baseline": [1, 3]}


@dataclass(frozen=True)
class _Point:
    line: str
    removed: int
    value: float
    low: float
    high: float
    tip: str


def sweep_figures(sweep: Sweep) -> list[Figure]:
    """For each text perplexity and KL divergence against the number of removed layers."""
    return [
        draw(sweep, judged, number)
        for number, judged in enumerate(sweep.judged, start=1)
        for draw in (_perplexities, _divergences)
    ]


def search_figure(search: Search) -> Figure:
    """What a search found: the divergence of its best choice of each number of layers."""
    points = [
        _point("search", search.count(each), each.kl_divergence, span(each.removed, each.zeroed))
        for each in search.frontier
    ]  # fmt: skip
    encoding = _encoding("KL divergence, nats", points, legend=None)
    kept = light("kept")
    return Figure(
        name="search-frontier",
        title="What each number of layers costs",
        caption=(
            "KL divergence from the untouched model of the best choice that the search found, on "
            "the text that it searched on; bars: one standard error; logarithmic scale."
        ),
        spec=chart(
            width=WIDTH,
            height=HEIGHT,
            layer=_layers(points, encoding, color=kept),
        ),
        columns=("removed", "layers", "kl", "kl_stderr", "loss_difference", "stderr"),
        rows=tuple(
            (
                search.count(each),
                numbers(each.removed, each.zeroed),
                each.kl_divergence.value,
                each.kl_divergence.stderr,
                each.loss_difference.value,
                each.loss_difference.stderr,
            )
            for each in search.frontier
        ),
    )


def _perplexities(sweep: Sweep, judged: JudgedText, number: int) -> Figure:
    untouched = judged.untouched.perplexity.value
    points = []
    for way in sweep.ways:
        points.append(_Point(way.name, 0, untouched, untouched, untouched, "untouched"))
        for choice in way.choices:
            said = judged.find(choice.removed)
            error = said.loss_difference.stderr
            value = said.perplexity.value
            tip = f"{way.name}, without {span(choice.removed)}: {score(value)}"
            points.append(
                _Point(
                    way.name,
                    choice.count,
                    value,
                    value * math.exp(-error),
                    value * math.exp(error),
                    tip,
                )
            )
    return _frontier(
        sweep,
        points,
        name=f"{_file_name(judged, number)}-perplexity",
        title=f"Perplexity on {short_source(judged.name)}",
        measure="perplexity",
        caption=(
            "Bars: one standard error of the loss, paired with the untouched model; logarithmic "
            "scale."
        ),
    )


def _divergences(sweep: Sweep, judged: JudgedText, number: int) -> Figure:
    points = []
    for way in sweep.ways:
        for choice in way.choices:
            found = judged.find(choice.removed).kl_divergence
            points.append(
                _point(way.name, choice.count, found, f"{way.name}, without {span(choice.removed)}")
            )
    return _frontier(
        sweep,
        points,
        name=f"{_file_name(judged, number)}-kl",
        title=f"KL divergence on {short_source(judged.name)}",
        measure="KL divergence, nats",
        caption="From the untouched model; bars: one standard error; logarithmic scale.",
    )


def _point(line: str, removed: int, found: Estimate, what: str) -> _Point:
    value, error = found.value, found.stderr
    tip = f"{what}: {estimate(found)}"
    return _Point(line, removed, value, max(value - error, value / 2), value + error, tip)


def _frontier(
    sweep: Sweep, points: Sequence[_Point], *, name: str, title: str, measure: str, caption: str
) -> Figure:
    coloured = [each.way for each in standings(sweep)[: len(SERIES)]]
    named = [way.name for way in coloured]
    others = [way for way in sweep.ways if way.name not in named]
    leading = [point for point in points if point.line in named]
    encoding = _encoding(measure, leading, legend=coloured)
    layers = []
    for way in others:
        own = [point for point in points if point.line == way.name]
        layers += _layers(own, encoding, color=light("muted"), opacity=0.45, dash=way.kind)
    for way in reversed(coloured):  # the best on top
        own = [point for point in points if point.line == way.name]
        layers += _layers(own, encoding, dash=way.kind)
    rest = f" Grey: {len(others)} others, cut off where they leave the scale." if others else ""
    kinds = " Lines: searches whole, criteria dashed, baselines dotted."
    return Figure(
        name=name,
        title=title,
        caption=f"{caption}{kinds}{rest}",
        spec=chart(width=WIDTH, height=HEIGHT, layer=layers),
        columns=("way", "removed", "value", "low", "high"),
        rows=tuple(
            (point.line, point.removed, point.value, point.low, point.high) for point in points
        ),
    )


def _layers(
    points: Sequence[_Point],
    encoding: Spec,
    *,
    color: str | None = None,
    opacity: float = 1,
    dash: str = "search",
) -> list[Spec]:
    """A line, its error bars and its dots; in `color`, or by the encoding's."""
    rows: list[Spec] = [
        {
            "way": point.line,
            "removed": point.removed,
            "value": point.value,
            "low": point.low,
            "high": point.high,
            "tip": point.tip,
        }
        for point in points
    ]
    shared = encoding if color is None else {k: v for k, v in encoding.items() if k != "color"}
    y: Spec = dict(shared["y"])  # type: ignore[call-overload]
    error = shared | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    style: Spec = {"clip": True, "opacity": opacity} | ({"color": color} if color else {})
    plain_rows = unlabelled(rows)
    return [
        mark(plain_rows, "line", shared, strokeWidth=1.5, strokeDash=_DASHES[dash], **style),
        mark(plain_rows, "rule", error, **style),
        dots(rows, shared, size=16, **style),
    ]


def _encoding(measure: str, points: Sequence[_Point], *, legend: Sequence[Way] | None) -> Spec:
    most = max((point.removed for point in points), default=1)
    first = min((point.removed for point in points), default=0)
    encoding: Spec = {
        "x": {
            "field": "removed",
            "type": "quantitative",
            "title": "layers removed",
            "scale": {"domain": [first - 0.3, most + 0.3], "nice": False},
            "axis": {"grid": False, "tickMinStep": 1, "format": "d"},
        },
        "y": {"field": "value", "type": "quantitative", "title": measure} | _height(points),
    }
    if legend is not None:
        encoding["color"] = colour_legend("way", [way.name for way in legend])
    return encoding


def _height(points: Sequence[_Point]) -> Spec:
    """A logarithmic axis from the lowest value to the highest that is shown."""
    values = [point.value for point in points if point.value > 0 and math.isfinite(point.value)]
    least, most = min(values, default=1.0), max(values, default=1.0)
    low = least / 1.15
    high = min(most, least * _HIGHEST) * 1.15
    widest = {3.5: (1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), 12.0: (1, 2, 3, 5, 7), 120.0: (1, 2, 5)}
    steps = next((found for width, found in widest.items() if high / low < width), (1, 3))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": {
            "minExtent": 34,
            "format": "~g",
            "values": [tick for tick in ticks if low <= tick <= high],
        },
    }


def _file_name(judged: JudgedText, number: int) -> str:
    """Of a figure: the text's number and the last part of its name, in letters that files take."""
    letters = re.sub(r"[^a-z0-9]+", "-", short_source(judged.name).lower()).strip("-")
    name = letters[:32].strip("-")
    return f"frontier-{number}-{name}" if name else f"frontier-{number}"
