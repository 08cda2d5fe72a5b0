"""One set of colours for charts and page, in light and dark.

Charts are drawn in the light colours; on the page, CSS rules by colour value replace each with
its variable, so one SVG serves both and stays a plain file for papers.
"""

from collections.abc import Sequence

Spec = dict[str, object]
"""A Vega-Lite specification or a part of one."""

COLOURS = {
    "paper": ("#fdfcf9", "#13171a"),
    "panel": ("#f4f2ec", "#1b2024"),
    "line": ("#e2dfd7", "#2e353b"),
    "muted": ("#5b646c", "#9ba6ae"),
    "ink": ("#1c2226", "#e9e6df"),
    "removed": ("#c2420d", "#ff9163"),
    "kept": ("#1a6384", "#6cc0dd"),
}
"""Name to (light, dark). Text colours keep a contrast of 4.5 on paper and panel."""

SERIES = (
    ("#0b6e99", "#5fb8dd"),
    ("#b4530a", "#f0975a"),
    ("#3f7d20", "#8cc96a"),
    ("#8a3fa0", "#cf93e3"),
    ("#a88100", "#dfc04f"),
    ("#c22d6b", "#f488b4"),
    ("#2b7f78", "#6ccabf"),
    ("#6d4f37", "#c3a383"),
)
"""(light, dark) of what is told apart by colour, in order; charts use the light one."""

_HEAT_LIGHT = ("#08324a", "#15607f", "#4e9cb5", "#a9d0d6", "#f1f0e6")
_HEAT_DARK = ("#b6f0f2", "#52b7cf", "#217a97", "#1b4a5e", "#1d262c")
HEAT_STEPS = 18

FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH = 356
"""Pixels of a chart's plot; with its axis it fits half the page, or a phone."""


def light(name: str) -> str:
    """The light form of a colour: what charts are drawn in."""
    return COLOURS[name][0]


def heat(*, dark: bool = False) -> tuple[str, ...]:
    """Sequential colours, low to high: low (redundant) stands out from the paper, high does not."""
    return _ramp(_HEAT_DARK if dark else _HEAT_LIGHT, HEAT_STEPS)


def variables(*, dark: bool = False) -> str:
    """The colours as CSS custom properties."""
    named = {name: pair[dark] for name, pair in COLOURS.items()}
    named |= {f"heat-{step}": colour for step, colour in enumerate(heat(dark=dark))}
    named |= {f"series-{place}": pair[dark] for place, pair in enumerate(SERIES)}
    return "".join(f"--{name}:{colour};" for name, colour in named.items())


def chart_rules() -> str:
    """CSS that turns the colours of an inlined chart into variables."""
    named = {light(name): name for name in COLOURS}
    named |= {colour: f"heat-{step}" for step, colour in enumerate(heat())}
    named |= {pair[0]: f"series-{place}" for place, pair in enumerate(SERIES)}
    return "".join(
        f'.chart [{attribute}="{colour}"]{{{attribute}:var(--{name})}}'
        for colour, name in named.items()
        for attribute in ("fill", "stroke")
        if attribute == "fill" or not name.startswith("heat")
    )


def chart(**parts: object) -> Spec:
    """A whole specification in the house style."""
    axis: Spec = {
        "aria": False,
        "domain": False,
        "tickColor": light("line"),
        "gridColor": light("line"),
        "labelColor": light("muted"),
        "titleColor": light("muted"),
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 11.5,
        "titlePadding": 8,
        "labelFont": FONT,
        "titleFont": FONT,
    }
    legend = {key: axis[key] for key in axis if key.startswith(("aria", "label", "title"))}
    legend |= {"gradientStrokeColor": None}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "background": "#ffffff",
        "padding": 4,
        "config": {
            "font": FONT,
            "view": {"stroke": None},
            "axis": axis,
            "legend": legend | {"titlePadding": 6},
            "concat": {"spacing": 10},
        },
        **parts,
    }


def mark(rows: Sequence[Spec], kind: str, encoding: Spec, **style: object) -> Spec:
    """One layer of a chart; marks whose rows have a tip are labelled with it."""
    named = all("tip" in row for row in rows)
    described: Spec = {"description": {"field": "tip"}} if named else {}
    return {
        "data": {"values": list(rows)},
        "mark": {"type": kind, "aria": named, **style},
        "encoding": encoding | described,
    }


def unlabelled(rows: Sequence[Spec]) -> list[Spec]:
    """The rows without their tips: for marks under others that carry them."""
    return [{key: value for key, value in row.items() if key != "tip"} for row in rows]


def dots(rows: Sequence[Spec], encoding: Spec, *, size: float, **style: object) -> Spec:
    """Filled points."""
    return mark(rows, "point", encoding, filled=True, size=size, **{"opacity": 1, **style})


def colour_legend(
    field: str, names: Sequence[str], *, first: str = "", symbol: str = "stroke"
) -> Spec:
    """Colour by a field whose values are told apart by the series' colours, named below.

    With `first`, the first name has that colour and the series begins at the second.
    """
    series = [pair[0] for pair in SERIES]
    count = len(names) - bool(first)
    colours = [first] * bool(first) + [series[place % len(series)] for place in range(count)]
    style: Spec = {"symbolStrokeWidth": 2.5} if symbol == "stroke" else {"symbolSize": 60}
    return {
        "field": field,
        "type": "nominal",
        "sort": list(names),
        "scale": {"domain": list(names), "range": colours},
        "legend": {
            "title": None,
            "orient": "bottom",
            "columns": 2,
            "columnPadding": 24,
            "symbolType": symbol,
            "symbolOpacity": 1,
            "labelLimit": 150,
            **style,
        },
    }


def _ramp(stops: Sequence[str], steps: int) -> tuple[str, ...]:
    colours = []
    for step in range(steps):
        place = step / (steps - 1) * (len(stops) - 1)
        index = min(int(place), len(stops) - 2)
        share = place - index
        pairs = zip(_channels(stops[index]), _channels(stops[index + 1]), strict=True)
        mixed = (round(first + share * (second - first)) for first, second in pairs)
        colours.append("#" + "".join(f"{channel:02x}" for channel in mixed))
    return tuple(colours)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
