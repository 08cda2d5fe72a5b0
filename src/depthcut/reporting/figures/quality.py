"""Figures of models beside each other: quality against size, and against speed."""

from collections.abc import Callable, Sequence

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
from depthcut.reporting.model_frontier import ModelFrontier, Place
from depthcut.reporting.words import amount, plain

HEIGHT = 250
COLOURED = 1 + len(SERIES)
"""Models that are told apart by colour; of more, those of the Pareto set carry their names."""


def quality_figures(frontier: ModelFrontier) -> list[Figure]:
    """One figure an axis: size always, speed where it was measured."""
    figures = [
        _figure(
            frontier,
            name="quality-and-size",
            title="Quality against size",
            axis="parameters, millions",
            better="smaller",
            same="as small",
            read=lambda place: place.model.parameters / 1e6,
            leads=lambda place: place.leads_size,
            words=lambda place: f"{amount(place.model.parameters)} parameters",
        )
    ]
    if frontier.speed:
        figures.append(
            _figure(
                frontier,
                name="quality-and-measured-speed",
                title="Quality against measured speed",
                axis=frontier.speed,
                better="faster",
                same="as fast",
                read=lambda place: place.speed,
                leads=lambda place: place.leads_speed,
                words=lambda place: f"{plain(place.speed or 0, 1)} tokens per second",
            )
        )
    return figures


def _figure(
    frontier: ModelFrontier,
    *,
    name: str,
    title: str,
    axis: str,
    better: str,
    same: str,
    read: Callable[[Place], float | None],
    leads: Callable[[Place], bool],
    words: Callable[[Place], str],
) -> Figure:
    quality = frontier.quality
    factor = quality.scale.factor
    names = [place.name for place in frontier.places]
    places = [place for place in frontier.places if read(place) is not None]
    rows: list[Spec] = [
        {
            "name": place.name,
            "x": read(place),
            "quality": factor * place.quality.value,
            "low": factor * (place.quality.value - place.quality.stderr),
            "high": factor * (place.quality.value + place.quality.stderr),
            "leads": leads(place),
            "tip": f"{place.name}: {quality.scale.shown(place.quality)}, {words(place)}",
        }
        for place in places
    ]
    direction = "Higher" if quality.higher_is_better else "Lower"
    return Figure(
        name=name,
        title=title,
        caption=(
            f"{direction} is better. Bars: one standard error. Filled and joined: the Pareto set: "
            f"no other model is as good and {better}, or better and {same}; by the means alone."
        ),
        spec=chart(width=WIDTH, height=HEIGHT, layer=_layers(rows, names, axis, quality.name)),
        columns=("model", "parameters", "tokens_per_second", "quality", "stderr", "pareto"),
        rows=tuple(
            (
                place.name,
                place.model.parameters,
                place.speed,
                place.quality.value,
                place.quality.stderr,
                leads(place),
            )
            for place in places
        ),
    )


def _layers(rows: Sequence[Spec], names: Sequence[str], axis: str, quality: str) -> list[Spec]:
    ahead = [row for row in rows if row["leads"]]
    behind = [row for row in rows if not row["leads"]]
    x: Spec = {
        "field": "x",
        "type": "quantitative",
        "title": axis,
        "scale": {"zero": False, "padding": 14},
        "axis": {"grid": False, "tickCount": 6},
    }
    y: Spec = {
        "type": "quantitative",
        "title": quality,
        "scale": {"zero": False, "padding": 10},
        "axis": {"tickCount": 6},
    }
    muted = light("muted")
    at: Spec = {"x": x, "y": {**y, "field": "quality"}}
    error: Spec = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}}
    many = len(names) > COLOURED
    if not many:
        colour = colour_legend("name", names, first=muted, symbol="circle")
        at, error = at | {"color": colour}, error | {"color": colour}
    joined = {key: value for key, value in at.items() if key != "color"}
    style: Spec = {"color": light("kept")} if many else {}
    hollow: Spec = {"fill": light("paper"), "strokeWidth": 1.8, "opacity": 1, **style}
    layers = [
        mark(unlabelled(ahead), "line", joined, color=muted, strokeWidth=1, strokeDash=[4, 3]),
        mark(unlabelled(rows), "rule", error, strokeWidth=1.4, **style),
        dots(ahead, at, size=60, **style),
    ]
    if behind:
        layers.append(mark(behind, "point", at, size=48, **hollow))
    if many:
        label = at | {"text": {"field": "name"}}
        ink = light("ink")
        layers.append(mark(unlabelled(ahead), "text", label, dy=-12, fontSize=10.5, color=ink))
    return layers
