"""Figures of a survey: all blocks, the best of each size, single layers, norms."""

import math
from collections.abc import Iterable, Sequence

from depthcut.records import Block, Plan, Scores, Survey, layers_in_words
from depthcut.reporting.figures import Figure
from depthcut.reporting.theme import WIDTH, Spec, chart, data, heat, light
from depthcut.reporting.words import score as shown

MOST_TIPS = 3500
"""Blocks that a heat map names one by one; more would weigh too much and are joined by colour."""
TOKENS = {"last": "last token", "all": "all tokens"}
CRITERIA = {
    "angular": "angular distance",
    "block-influence": "block influence",
    "magnitude": "relative magnitude",
}


def survey_figures(survey: Survey, plan: Plan | None) -> list[Figure]:
    """The figures of a survey, with what the plan removes marked."""
    removed = plan.removed if plan else ()
    figures = []
    if (scores := block_scores(survey, plan)) is not None:
        others = [
            each
            for each in survey.scores
            if each.criterion == scores.criterion and each.tokens != scores.tokens
        ]
        figures += [heat_map(scores, removed), best_blocks(scores, others, plan)]
    by_criterion: dict[str, list[Scores]] = {}
    for each in survey.scores:
        if each.scope == "layer":
            by_criterion.setdefault(each.criterion, []).append(each)
    figures += [layer_scores(each, removed) for each in by_criterion.values()]
    return [*figures, norms(survey.norms, removed)]


def block_scores(survey: Survey, plan: Plan | None) -> Scores | None:
    """The block scores to show: those that the plan was made from, else the first."""
    blocks = [each for each in survey.scores if each.scope == "block"]
    wanted = (plan.settings.criterion, plan.settings.tokens) if plan else None
    for each in blocks:
        if (each.criterion, each.tokens) == wanted:
            return each
    return blocks[0] if blocks else None


def best_of_size(scores: Scores, size: int) -> int:
    """Where the lowest-scoring block of so many layers starts."""
    starts = [start for start, row in enumerate(scores.mean) if len(row) >= size]
    return min(starts, key=lambda start: scores.mean[start][size - 1])


def heat_map(scores: Scores, removed: Sequence[Block]) -> Figure:
    """Every block by where it starts and how many layers it has."""
    layers = len(scores.mean)
    rows = tuple(
        (start, start + size, size, value, scores.stderr[start][size - 1])
        for start, row in enumerate(scores.mean)
        for size, value in enumerate(row, start=1)
    )
    tips = len(rows) <= MOST_TIPS
    cells: list[Spec] = [
        {"start": start, "size": size, "score": value, "tip": f"{_span(start, stop)}: {value:.4g}"}
        for start, stop, size, value, _ in (rows if tips else sorted(rows, key=lambda row: row[3]))
    ]
    best: list[Spec] = [
        {"start": best_of_size(scores, size), "size": size} for size in range(1, layers)
    ]
    chosen: list[Spec] = [{"start": start, "size": stop - start} for start, stop in removed]
    every = _step(layers)
    gap: Spec = {"paddingInner": 0.07 if layers <= 48 else 0}
    place: Spec = {
        "x": {
            "field": "start",
            "type": "ordinal",
            "title": "first layer of the block",
            "axis": {"values": list(range(0, layers, every)), "labelAngle": 0},
            "scale": gap,
        },
        "y": {
            "field": "size",
            "type": "ordinal",
            "sort": "descending",
            "title": "layers in the block",
            "axis": {"values": [1, *range(every, layers + 1, every)]},
            "scale": gap,
        },
    }
    name = CRITERIA.get(scores.criterion, scores.criterion)
    lowest, highest = min(row[3] for row in rows), max(row[3] for row in rows)
    colour: Spec = {
        "field": "score",
        "type": "quantitative",
        "scale": {
            "type": "quantize",
            "range": list(heat()),
            "domain": [lowest, highest],
            "nice": False,
        },
        "legend": {
            "title": name,
            "type": "gradient",
            "orient": "none",
            "legendX": WIDTH - 138,
            "legendY": 8,
            "direction": "horizontal",
            "gradientLength": 130,
            "gradientThickness": 9,
            "format": ".2f",
            "labelOverlap": "greedy",
            "labelSeparation": 22,
        },
    }
    pitch = WIDTH / layers
    spec = chart(
        width=WIDTH,
        height=WIDTH,
        layer=[
            {
                "data": data(cells),
                "mark": {"type": "rect", "aria": tips},
                "encoding": place
                | {"color": colour}
                | ({"description": {"field": "tip"}} if tips else {}),
            },
            {
                "data": data(best),
                "mark": {
                    "type": "point",
                    "fill": light("paper"),
                    "stroke": light("ink"),
                    "strokeWidth": min(0.9, pitch / 13),
                    "size": min(60.0, max(3.0, (pitch * 0.34) ** 2)),
                    "opacity": 1,
                    "aria": False,
                },
                "encoding": place,
            },
            *(
                {
                    "data": data(chosen),
                    "mark": {
                        "type": "rect",
                        "fill": None,
                        "stroke": light(colour_name),
                        "strokeWidth": width,
                        "aria": False,
                    },
                    "encoding": place,
                }
                for colour_name, width in (("paper", 5), ("removed", 2.5))
            ),
        ],
    )
    return Figure(
        name="heat-map",
        title="Every block at once",
        caption=(
            f"{name.capitalize()} at the {TOKENS[scores.tokens]} between what enters a block and "
            "what leaves it, for every start and size: the stronger the colour, the less the "
            "block does. A dot marks the best block of each size"
            + (", an outline what was removed." if removed else ".")
        ),
        spec=spec,
        columns=("start", "stop", "size", "score", "stderr"),
        rows=rows,
    )


def best_blocks(scores: Scores, others: Sequence[Scores], plan: Plan | None) -> Figure:
    """The lowest score for each size of block, and which block has it."""
    layers = len(scores.mean)
    rows = tuple(row for each in (scores, *others) for row in _best_rows(each) if row[1] < layers)
    points: list[Spec] = [
        {
            "tokens": TOKENS[tokens],
            "size": size,
            "start": start - 0.5,
            "stop": stop - 0.5,
            "score": value,
            "low": value - stderr,
            "high": value + stderr,
            "tip": f"{_span(start, stop)}: {shown(value)} ± {shown(stderr)}",
        }
        for tokens, size, start, stop, value, stderr in rows
    ]
    main = [point for point in points if point["tokens"] == TOKENS[scores.tokens]]
    other = [point for point in points if point["tokens"] != TOKENS[scores.tokens]]
    chosen = _chosen(scores, plan)
    muted, kept, cut = (light(name) for name in ("muted", "kept", "removed"))
    size: Spec = {"field": "size", "type": "quantitative"}
    size |= {"scale": {"domain": [0.5, layers - 0.5], "nice": False}}
    hidden: Spec = {**size, "axis": {"labels": False, "ticks": False, "title": None, "grid": False}}
    name = CRITERIA.get(scores.criterion, scores.criterion)
    left: Spec = {"minExtent": 34, "tickCount": 5}
    value: Spec = {"type": "quantitative", "axis": left}
    score: Spec = {**value, "field": "score", "title": name}
    tip: Spec = {"description": {"field": "tip"}}
    curve: list[Spec] = [
        {
            "data": data(other),
            "mark": {"type": "line", "color": muted, "strokeDash": [3, 3], "aria": False},
            "encoding": {"x": hidden, "y": score, "detail": {"field": "tokens"}},
        },
        {
            "data": data(main),
            "mark": {"type": "area", "color": kept, "opacity": 0.2, "aria": False},
            "encoding": {
                "x": hidden,
                "y": {**value, "field": "low", "title": name},
                "y2": {"field": "high"},
            },
        },
        {
            "data": data(main),
            "mark": {"type": "line", "color": kept, "strokeWidth": 1.5, "aria": False},
            "encoding": {"x": hidden, "y": score},
        },
        {
            "data": data(main),
            "mark": {"type": "point", "filled": True, "color": kept, "size": 22, "opacity": 1},
            "encoding": {"x": hidden, "y": score, **tip},
        },
        {
            "data": data(chosen),
            "mark": {"type": "point", "filled": True, "color": cut, "size": 70, "opacity": 1},
            "encoding": {"x": hidden, "y": score, **tip},
        },
        {
            "data": data(chosen),
            "mark": {
                "type": "text",
                "color": cut,
                "fontWeight": "bold",
                "align": {"expr": f"datum.size > {layers / 2} ? 'right' : 'left'"},
                "dy": {"expr": f"datum.size > {layers / 2} ? -12 : 15"},
                "dx": 4,
                "aria": False,
            },
            "encoding": {"x": hidden, "y": score, "text": {"field": "label"}},
        },
    ]
    which: Spec = {
        "x": {**size, "title": "layers in the block", "axis": {"grid": False, "tickMinStep": 1}},
        "y": {
            "field": "start",
            "type": "quantitative",
            "title": "which layers",
            "scale": {"domain": [-0.5, layers - 0.5], "nice": False},
            "axis": {**left, "tickMinStep": 1},
        },
        "y2": {"field": "stop"},
    }
    width = max(1.5, 0.55 * WIDTH / layers)
    spans: list[Spec] = [
        {
            "data": data(main),
            "mark": {"type": "rule", "color": kept, "strokeWidth": width},
            "encoding": {**which, **tip},
        },
        {
            "data": data(chosen),
            "mark": {"type": "rule", "color": cut, "strokeWidth": width, "aria": False},
            "encoding": which,
        },
    ]
    spec = chart(
        vconcat=[
            {"width": WIDTH, "height": 190, "layer": curve},
            {"width": WIDTH, "height": 130, "layer": spans},
        ]
    )
    return Figure(
        name="best-blocks",
        title="The best block of each size",
        caption=(
            f"Above: the lowest {name} that a block of so many layers has, at the "
            f"{TOKENS[scores.tokens]} (band: one standard error)"
            + (f", and at {TOKENS[others[0].tokens]} (dashed)" if others else "")
            + ". Below: which layers that block spans"
            + ("; the removed block in orange." if chosen else ".")
        ),
        spec=spec,
        columns=("tokens", "size", "start", "stop", "score", "stderr"),
        rows=rows,
    )


def layer_scores(every: Sequence[Scores], removed: Sequence[Block]) -> Figure:
    """The scores of single layers by one criterion, at the last and at all tokens."""
    layers = len(every[0].mean)
    rows = tuple(
        (each.tokens, layer, each.mean[layer][0], each.stderr[layer][0])
        for each in every
        for layer in range(layers)
    )
    apart = dict(zip(TOKENS, (-0.14, 0.14), strict=True))
    logarithmic = _spreads([row[2] for row in rows])
    height = _height([row[2] for row in rows], [row[3] for row in rows])
    points: list[Spec] = [
        {
            "tokens": TOKENS[tokens],
            "place": layer + (apart[tokens] if len(every) > 1 else 0),
            "score": value,
            "low": max(value - stderr, value / 2) if logarithmic else value - stderr,
            "high": value + stderr,
            "tip": f"layer {layer}, {TOKENS[tokens]}: {shown(value)} ± {shown(stderr)}",
        }
        for tokens, layer, value, stderr in rows
    ]
    name = CRITERIA.get(every[0].criterion, every[0].criterion)
    y: Spec = {"type": "quantitative", "title": name, **height}
    x: Spec = {
        "field": "place",
        "type": "quantitative",
        "title": "layer",
        "scale": {"domain": [-0.7, layers - 0.3], "nice": False},
        "axis": {"grid": False, "tickMinStep": 1},
    }
    legend: Spec = {"title": None, "orient": "top", "offset": 4}
    legend |= {"symbolOpacity": 1, "symbolSize": 36}
    colour: Spec = {
        "field": "tokens",
        "type": "nominal",
        "scale": {"domain": list(TOKENS.values()), "range": [light("ink"), light("kept")]},
        "legend": legend if len(every) > 1 else None,
    }
    spec = chart(
        width=WIDTH,
        height=190,
        layer=[
            _removed_band(removed, shift=-0.5, title="layer"),
            {
                "data": data(points),
                "mark": {"type": "rule", "opacity": 0.55, "aria": False},
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "low"},
                    "y2": {"field": "high"},
                    "color": colour,
                },
            },
            {
                "data": data(points),
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": min(30, max(8, 900 / layers)),
                    "opacity": 1,
                },
                "encoding": {
                    "x": x,
                    "y": {**y, "field": "score"},
                    "color": colour,
                    "description": {"field": "tip"},
                },
            },
        ],
    )
    return Figure(
        name=every[0].criterion,
        title=f"{name.capitalize()} of each layer",
        caption=(
            f"{_MEANINGS.get(every[0].criterion, name.capitalize())}; bars: one standard error"
            + (", logarithmic scale" if logarithmic else "")
            + _shaded(removed)
        ),
        spec=spec,
        columns=("tokens", "layer", "score", "stderr"),
        rows=rows,
    )


def norms(values: Sequence[float], removed: Sequence[Block]) -> Figure:
    """The mean norm of the residual stream at each depth."""
    points: list[Spec] = [
        {"depth": depth, "norm": value, "tip": f"depth {depth}: {shown(value)}"}
        for depth, value in enumerate(values)
    ]
    logarithmic = _spreads(values)
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
    line: Spec = {"type": "line", "color": light("kept"), "strokeWidth": 1.5, "aria": False}
    point: Spec = {"type": "point", "filled": True, "color": light("kept"), "opacity": 1}
    point |= {"size": min(24, max(8, 700 / len(values)))}
    spec = chart(
        width=WIDTH,
        height=190,
        layer=[
            _removed_band(removed, shift=0.0, title="depth"),
            {"data": data(points), "mark": line, "encoding": encoding},
            {
                "data": data(points),
                "mark": point,
                "encoding": encoding | {"description": {"field": "tip"}},
            },
        ],
    )
    return Figure(
        name="norms",
        title="Size of the residual stream",
        caption=(
            "Mean Euclidean norm of the states at each depth, before the final norm"
            + (", logarithmic scale" if logarithmic else "")
            + _shaded(removed)
        ),
        spec=spec,
        columns=("depth", "norm"),
        rows=tuple(enumerate(values)),
    )


_MEANINGS = {
    "block-influence": "How far a layer turns its input, 1 − mean cosine (ShortGPT)",
    "magnitude": "How much a layer adds, as a share of what enters it",
}


def _best_rows(scores: Scores) -> Iterable[tuple[str, int, int, int, float, float]]:
    for size in range(1, max(len(row) for row in scores.mean) + 1):
        start = best_of_size(scores, size)
        value, stderr = scores.mean[start][size - 1], scores.stderr[start][size - 1]
        yield scores.tokens, size, start, start + size, value, stderr


def _chosen(scores: Scores, plan: Plan | None) -> list[Spec]:
    """The removed block, where it is one block: its own score, whoever chose it."""
    if plan is None or len(plan.removed) != 1:
        return []
    start, stop = plan.removed[0]
    value = scores.mean[start][stop - start - 1]
    return [
        {
            "size": stop - start,
            "start": start - 0.5,
            "stop": stop - 0.5,
            "score": value,
            "label": _span(start, stop),
            "tip": f"removed: {_span(start, stop)}: {shown(value)}",
        }
    ]


def _removed_band(removed: Sequence[Block], *, shift: float, title: str) -> Spec:
    return {
        "data": data([{"start": start + shift, "stop": stop + shift} for start, stop in removed]),
        "mark": {"type": "rect", "color": light("removed"), "opacity": 0.13, "aria": False},
        "encoding": {
            "x": {"field": "start", "type": "quantitative", "title": title},
            "x2": {"field": "stop"},
        },
    }


def _span(start: int, stop: int) -> str:
    return layers_in_words([(start, stop)]).split(" (")[0]


def _shaded(removed: Sequence[Block]) -> str:
    return ". Shaded: removed." if removed else "."


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


def _step(layers: int) -> int:
    return next((step for step in (1, 5, 10, 20, 50) if layers / step <= 10), 100)
