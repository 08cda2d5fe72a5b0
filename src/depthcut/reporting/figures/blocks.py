"""Figures of block scores: every block at once, and the best block of each size."""

from collections.abc import Iterable, Sequence

from depthcut.records import Block, Plan, Scores
from depthcut.reporting.criteria_tables import lowest
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.theme import WIDTH, Spec, chart, dots, heat, light, mark, unlabelled
from depthcut.reporting.words import at_tokens, criterion, span
from depthcut.reporting.words import score as shown

_LEGEND: Spec = {
    "type": "gradient",
    "direction": "horizontal",
    "gradientLength": 130,
    "gradientThickness": 9,
    "format": ".2f",
    "labelOverlap": "greedy",
    "labelSeparation": 22,
}
MOST_TIPS = 3500
"""Blocks that a heat map names one by one; more would weigh too much and are joined by colour."""


def heat_map(scores: Scores, removed: Sequence[Block]) -> Figure:
    """Every block by where it starts and how many layers it has."""
    layers = len(scores.mean)
    rows = tuple(
        (start, start + size, size, value, scores.stderr[start][size - 1])
        for start, row in enumerate(scores.mean)
        for size, value in enumerate(row, start=1)
    )
    cells: list[Spec] = [
        {"start": start, "size": stop - start, "score": value, "tip": _named(start, stop, value)}
        for start, stop, _, value, _ in rows
    ]
    if len(cells) > MOST_TIPS:
        by_score = sorted(rows, key=lambda row: row[3])
        cells = [
            {"start": start, "size": size, "score": value} for start, _, size, value, _ in by_score
        ]
    largest = max(len(row) for row in scores.mean)
    best: list[Spec] = [
        {"start": best_of_size(scores, size), "size": size}
        for size in range(1, min(largest, layers - 1) + 1)
    ]
    chosen: list[Spec] = [
        {"start": start, "size": stop - start}
        for start, stop in removed
        if stop - start <= len(scores.mean[start])
    ]
    name, place, pitch = criterion(scores.criterion), _places(layers, largest), WIDTH / layers
    colour = _heat_colour(name, min(row[3] for row in rows), max(row[3] for row in rows))
    if largest < 0.7 * layers:  # no room beside the upper rows
        colour["legend"] = {**_LEGEND, "title": name, "orient": "top"}
    outlines = [
        mark(chosen, "rect", place, fill=None, stroke=light(colour_name), strokeWidth=width)
        for colour_name, width in (("paper", 5), ("removed", 2.5))
        if chosen
    ]
    dot = mark(
        best,
        "point",
        place,
        fill=light("paper"),
        stroke=light("ink"),
        strokeWidth=min(0.9, pitch / 13),
        size=min(60.0, max(3.0, (pitch * 0.34) ** 2)),
        opacity=1,
    )
    return Figure(
        name="heat-map",
        title="Every block at once",
        caption=(
            f"{name.capitalize()} {at_tokens(scores.tokens)} between what enters a block and "
            "what leaves it, for every start and size: the stronger the colour, the less the "
            "block does. A dot marks the best block of each size"
            + (", an outline what was removed." if removed else ".")
        ),
        spec=chart(
            width=WIDTH,
            height=round(WIDTH * max(largest / layers, 0.2)),
            layer=[mark(cells, "rect", place | {"color": colour}), dot, *outlines],
        ),
        columns=("start", "stop", "size", "score", "stderr"),
        rows=rows,
    )


def best_blocks(scores: Scores, others: Sequence[Scores], plan: Plan | None) -> Figure:
    """The lowest score for each size of block, and which block has it."""
    layers = len(scores.mean)
    rows = tuple(row for each in (scores, *others) for row in _best_rows(each) if row[1] < layers)
    points: list[Spec] = [
        {
            "tokens": tokens,
            "size": size,
            "start": start - 0.5,
            "stop": stop - 0.5,
            "score": value,
            "low": value - stderr,
            "high": value + stderr,
            "tip": f"{_named(start, stop, value)} ± {shown(stderr)}",
        }
        for tokens, size, start, stop, value, stderr in rows
    ]
    main = [point for point in points if point["tokens"] == scores.tokens]
    other = [point for point in points if point["tokens"] != scores.tokens]
    chosen, name = _chosen(scores, plan), criterion(scores.criterion)
    curve = _curve(main, other, chosen, name, layers)
    return Figure(
        name="best-blocks",
        title="The best block of each size",
        caption=(
            f"Above: the lowest {name} that a block of so many layers has, "
            f"{at_tokens(scores.tokens)} (band: one standard error)"
            + (f", and {at_tokens(others[0].tokens)} (dashed)" if others else "")
            + ". Below: which layers that block spans"
            + ("; the removed block in orange." if chosen else ".")
        ),
        spec=chart(
            vconcat=[
                {"width": WIDTH, "height": 190, "layer": curve},
                {"width": WIDTH, "height": 130, "layer": _spans(main, chosen, layers)},
            ]
        ),
        columns=("tokens", "size", "start", "stop", "score", "stderr"),
        rows=rows,
    )


def best_of_size(scores: Scores, size: int) -> int:
    """Where the lowest-scoring block of so many layers starts."""
    return lowest(scores, size)[0][0]


def _places(layers: int, largest: int) -> Spec:
    starts: Spec = {"values": list(range(0, layers, _every(layers))), "labelAngle": 0}
    sizes: Spec = {"values": [1, *range(_every(largest), largest + 1, _every(largest))]}
    x: Spec = {"field": "start", "title": "first layer of the block", "axis": starts}
    y: Spec = {"field": "size", "title": "layers in the block", "axis": sizes}
    gap = {"paddingInner": 0.07 if layers <= 48 else 0}
    x |= {"type": "ordinal", "scale": {**gap, "domain": list(range(layers))}}
    y |= {"type": "ordinal", "scale": {**gap, "domain": list(range(largest, 0, -1))}}
    return {"x": x, "y": y}


def _every(count: int) -> int:
    """Which of so many places are labelled."""
    return next((step for step in (1, 5, 10, 20, 50) if count / step <= 10), 100)


def _heat_colour(name: str, lowest: float, highest: float) -> Spec:
    return {
        "field": "score",
        "type": "quantitative",
        "scale": {
            "type": "quantize",
            "range": list(heat()),
            "domain": [lowest, highest],
            "nice": False,
        },
        "legend": {
            **_LEGEND,
            "title": name,
            "orient": "none",
            "legendX": WIDTH - 138,
            "legendY": 8,
        },
    }


def _sizes(layers: int) -> Spec:
    scale: Spec = {"domain": [0.5, layers - 0.5], "nice": False}
    return {"field": "size", "type": "quantitative", "scale": scale}


def _curve(
    main: Sequence[Spec], other: Sequence[Spec], chosen: Sequence[Spec], name: str, layers: int
) -> list[Spec]:
    hidden: Spec = {"labels": False, "ticks": False, "title": None, "grid": False}
    x: Spec = {**_sizes(layers), "axis": hidden}
    value: Spec = {"type": "quantitative", "title": name}
    value |= {"axis": {"minExtent": 34, "tickCount": 5}}
    line: Spec = {"x": x, "y": {**value, "field": "score"}}
    band: Spec = {"x": x, "y": {**value, "field": "low"}, "y2": {"field": "high"}}
    muted, kept, cut = (light(colour) for colour in ("muted", "kept", "removed"))
    right = f"datum.size > {layers / 2}"
    label = mark(
        unlabelled(chosen),
        "text",
        line | {"text": {"field": "label"}},
        color=cut,
        fontWeight="bold",
        align={"expr": f"{right} ? 'right' : 'left'"},
        dy={"expr": f"{right} ? -12 : 15"},
        dx=4,
    )
    return [
        mark(unlabelled(other), "line", line, color=muted, strokeDash=[3, 3]),
        mark(unlabelled(main), "area", band, color=kept, opacity=0.2),
        mark(unlabelled(main), "line", line, color=kept, strokeWidth=1.5),
        dots(main, line, size=22, color=kept),
        *((dots(chosen, line, size=70, color=cut), label) if chosen else ()),
    ]


def _spans(main: Sequence[Spec], chosen: Sequence[Spec], layers: int) -> list[Spec]:
    width = max(1.5, 0.55 * WIDTH / layers)
    which: Spec = {
        "x": {
            **_sizes(layers),
            "title": "layers in the block",
            "axis": {"grid": False, "tickMinStep": 1},
        },
        "y": {
            "field": "start",
            "type": "quantitative",
            "title": "which layers",
            "scale": {"domain": [-0.5, layers - 0.5], "nice": False},
            "axis": {"minExtent": 34, "tickCount": 5, "tickMinStep": 1},
        },
        "y2": {"field": "stop"},
    }
    spans = [mark(main, "rule", which, color=light("kept"), strokeWidth=width)]
    if chosen:
        spans.append(mark(chosen, "rule", which, color=light("removed"), strokeWidth=width))
    return spans


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
    if stop - start > len(scores.mean[start]):
        return []
    value = scores.mean[start][stop - start - 1]
    return [
        {
            "size": stop - start,
            "start": start - 0.5,
            "stop": stop - 0.5,
            "score": value,
            "label": span([(start, stop)]),
            "tip": f"removed: {_named(start, stop, value)}",
        }
    ]


def _named(start: int, stop: int, value: float) -> str:
    return f"{span([(start, stop)])}: {shown(value)}"
