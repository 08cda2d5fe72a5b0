"""Figures over the depth of a model: scores of single layers, norms of the residual stream."""

import math
from collections.abc import Sequence

from depthcut.records import Block, Scores
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.theme import WIDTH, Spec, chart, dots, light, mark, unlabelled
from depthcut.reporting.words import TOKENS, criterion, sentence
from depthcut.reporting.words import score as shown

HEIGHT = 190


def layer_scores(every: Sequence[Scores], removed: Sequence[Block]) -> Figure:
    """The scores of single layers by one criterion, at the last and at all tokens."""
    layers, several = len(every[0].mean), len(every) > 1
    rows = tuple(
        (each.tokens, layer, each.mean[layer][0], each.stderr[layer][0])
        for each in every
        for layer in range(layers)
    )
    logarithmic = _spreads([row[2] for row in rows])
    aside = dict(zip(TOKENS, (-0.14, 0.14), strict=True))
    points: list[Spec] = [
        {
            "tokens": TOKENS[tokens],
            "place": layer + (aside[tokens] if several else 0),
            "score": value,
            "low": max(value - stderr, value / 2) if logarithmic else value - stderr,
            "high": value + stderr,
            "tip": f"layer {layer}, {TOKENS[tokens]}: {shown(value)} ± {shown(stderr)}",
        }
        for tokens, layer, value, stderr in rows
    ]
    name = criterion(every[0].criterion)
    y: Spec = {"type": "quantitative", "title": name}
    y |= _height([row[2] for row in rows], [row[3] for row in rows])
    shared: Spec = {
        "x": {
            "field": "place",
            "type": "quantitative",
            "title": "layer",
            "scale": {"domain": [-0.7, layers - 0.3], "nice": False},
            "axis": {"grid": False, "tickMinStep": 1},
        },
        "color": _by_tokens(legend=several),
    }
    error: Spec = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    score: Spec = {"y": {**y, "field": "score"}}
    return Figure(
        name=every[0].criterion,
        title=f"{sentence(name)} of each layer",
        caption=(
            f"{sentence(every[0].meaning or name)}; bars: one standard error"
            + _scale_and_shade(logarithmic, removed)
        ),
        spec=chart(
            width=WIDTH,
            height=HEIGHT,
            layer=[
                *_removed_band(removed, shift=-0.5, title="layer"),
                mark(unlabelled(points), "rule", shared | error, opacity=0.55),
                dots(points, shared | score, size=min(30, max(8, 900 / layers))),
            ],
        ),
        columns=("tokens", "layer", "score", "stderr"),
        rows=rows,
    )


def norms(values: Sequence[float], removed: Sequence[Block]) -> Figure:
    """The mean norm of the residual stream at each depth."""
    points: list[Spec] = [
        {"depth": depth, "norm": value, "tip": f"depth {depth}: {shown(value)}"}
        for depth, value in enumerate(values)
    ]
    encoding: Spec = {
        "x": {
            "field": "depth",
            "type": "quantitative",
            "title": "depth",
            "scale": {"domain": [-0.2, len(values) - 0.8], "nice": False},
            "axis": {"grid": False, "tickMinStep": 1},
        },
        "y": {
            "field": "norm",
            "type": "quantitative",
            "title": "mean norm",
            **_height(values, [0.0] * len(values)),
        },
    }
    kept = light("kept")
    return Figure(
        name="norms",
        title="Size of the residual stream",
        caption=(
            "Mean Euclidean norm of the states at each depth, before the final norm"
            + _scale_and_shade(_spreads(values), removed)
        ),
        spec=chart(
            width=WIDTH,
            height=HEIGHT,
            layer=[
                *_removed_band(removed, shift=0.0, title="depth"),
                mark(unlabelled(points), "line", encoding, color=kept, strokeWidth=1.5),
                dots(points, encoding, size=min(24, max(8, 700 / len(values))), color=kept),
            ],
        ),
        columns=("depth", "norm"),
        rows=tuple(enumerate(values)),
    )


def _by_tokens(*, legend: bool) -> Spec:
    shape: Spec = {"title": None, "orient": "top", "offset": 4}
    shape |= {"symbolOpacity": 1, "symbolSize": 36}
    return {
        "field": "tokens",
        "type": "nominal",
        "scale": {"domain": list(TOKENS.values()), "range": [light("ink"), light("kept")]},
        "legend": shape if legend else None,
    }


def _removed_band(removed: Sequence[Block], *, shift: float, title: str) -> list[Spec]:
    if not removed:
        return []
    rows: list[Spec] = [{"start": start + shift, "stop": stop + shift} for start, stop in removed]
    x: Spec = {"field": "start", "type": "quantitative", "title": title}
    encoding: Spec = {"x": x, "x2": {"field": "stop"}}
    return [mark(rows, "rect", encoding, color=light("removed"), opacity=0.13)]


def _scale_and_shade(logarithmic: bool, removed: Sequence[Block]) -> str:
    scale = ", logarithmic scale" if logarithmic else ""
    return f"{scale}. Shaded: removed." if removed else f"{scale}."


def _spreads(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 20


def _height(values: Sequence[float], errors: Sequence[float]) -> Spec:
    """Scale and axis for values of any spread, zero included where it is linear."""
    axis: Spec = {"minExtent": 34, "format": "~g"}
    if not _spreads(values):
        return {"scale": {"zero": True}, "axis": axis | {"tickCount": 5}}
    low, high = min(values) / 1.3, 1.2 * max(map(float.__add__, map(float, values), errors))
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    return {
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": axis | {"values": [tick for tick in ticks if low <= tick <= high]},
    }
