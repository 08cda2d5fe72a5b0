"""Figures of what came out: quality and speed of each model, loss while healing."""

from depthcut.records import Bench, Evaluation, HealRecord, Spread
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.theme import (
    WIDTH,
    Spec,
    chart,
    colour_legend,
    dots,
    light,
    mark,
    unlabelled,
)
from depthcut.reporting.words import plain

BarRow = tuple[str, str, float, float, float]
"""Model, measure, a value, its low and its high end."""


def quality_and_speed(evaluation: Evaluation | None, bench: Bench | None = None) -> Figure:
    """Perplexity and speeds of all models, one panel a measure, one bar a model.

    No rows: neither was measured.
    """
    rows = (*_perplexities(evaluation), *_speeds(bench))
    names = list(dict.fromkeys(row[0] for row in rows))
    measures = list(dict.fromkeys(row[1] for row in rows))
    panels = [
        _panel(measure, [row for row in rows if row[1] == measure], names) for measure in measures
    ]
    judged = "Perplexity (lower is better; line: one standard error)"
    timed = "okens per second (higher is better; line: the middle half of the rounds)"
    if len(measures) == 3:
        title, caption = "Quality and speed", f"{judged} and t{timed}."
    else:
        title, caption = ("Speed", f"T{timed}.") if measures[1:] else ("Perplexity", f"{judged}.")
    return Figure(
        name="quality-and-speed",
        title=title,
        caption=caption,
        spec=chart(vconcat=panels),
        columns=("model", "measure", "value", "low", "high"),
        rows=rows,
    )


def healing_loss(record: HealRecord) -> Figure:
    """What training makes small against step, on what it trains on and on text held out."""
    rows = [
        *(("training", step, loss) for step, loss in record.losses),
        *(("held out", each.step, each.loss) for each in record.judgements),
    ]
    points: list[Spec] = [
        {"text": text, "step": step, "loss": loss, "tip": f"{text}, step {step}: {loss:.3f}"}
        for text, step, loss in rows
    ]
    names = list(dict.fromkeys(text for text, *_ in rows))
    encoding: Spec = {
        "color": colour_legend("text", names, symbol="circle"),
        "x": {"field": "step", "type": "quantitative", "axis": {"grid": False, "tickMinStep": 1}},
        "y": {
            "field": "loss",
            "type": "quantitative",
            "title": "loss, nats per token",
            "scale": {"zero": False},
            "axis": {"tickCount": 5},
        },
    }
    small = record.settings.loss or ("kl to the teacher" if record.teacher else "next-token")
    held = (
        f"; held out: {record.held_out_tokens:,} tokens, of which step {record.best_step} is best"
    )
    return Figure(
        name="healing-loss",
        title="Loss while healing",
        caption=(
            f"What training makes small: {small}. On the training text the mean since the point "
            f"before{held if record.judgements else ''}."
        ),
        spec=chart(
            width=WIDTH,
            height=190,
            layer=[
                mark(unlabelled(points), "line", encoding, strokeWidth=1.5),
                dots(points, encoding, size=20),
            ],
        ),
        columns=("text", "step", "loss"),
        rows=tuple(rows),
    )


def _perplexities(evaluation: Evaluation | None) -> list[BarRow]:
    found = []
    for each in evaluation.models if evaluation else ():
        if each.perplexity is not None:
            mean, error = each.perplexity.value, each.perplexity.stderr
            found.append((each.name, "perplexity", mean, mean - error, mean + error))
    return found


def _speeds(bench: Bench | None) -> list[BarRow]:
    """At the first batch size."""
    if bench is None:
        return []
    timed = [(each.name, bench.timing(each.name)) for each in bench.models]
    return [
        *(_bar(name, "prefill, tokens per second", each.prefill) for name, each in timed if each),
        *(_bar(name, "decode, tokens per second", each.decode) for name, each in timed if each),
    ]


def _bar(name: str, measure: str, spread: Spread) -> BarRow:
    return name, measure, spread.median, spread.low, spread.high


def _panel(measure: str, rows: list[BarRow], names: list[str]) -> Spec:
    bars: list[Spec] = [
        {
            "model": name,
            "value": value,
            "low": low,
            "high": high,
            "label": plain(value, 1 if value < 100 else 0),
            "colour": light("muted" if name == names[0] else "kept"),
            "tip": f"{name}: {plain(value, 2)} ({plain(low, 2)} to {plain(high, 2)})",
        }
        for name, _, value, low, high in rows
    ]
    longest = max(row[4] for row in rows)
    y: Spec = {
        "field": "model",
        "type": "nominal",
        "sort": names,
        "title": None,
        "axis": {"ticks": False, "labelLimit": 130, "minExtent": 64, "labelPadding": 6},
    }
    x: Spec = {
        "type": "quantitative",
        "title": None,
        "axis": None,
        "scale": {"domain": [0, longest * 1.14], "nice": False},
    }
    ink = light("ink")
    bar = {
        "x": {**x, "field": "value"},
        "y": y,
        "color": {"field": "colour", "type": "nominal", "scale": None},
    }
    error: Spec = {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y}
    label: Spec = {"x": {**x, "field": "high"}, "y": y, "text": {"field": "label"}}
    plain_bars = unlabelled(bars)
    return {
        "width": 320,
        "height": {"step": 21},
        "title": {
            "text": measure,
            "anchor": "start",
            "fontSize": 11.5,
            "fontWeight": "normal",
            "color": ink,
            "frame": "group",
            "offset": 4,
        },
        "layer": [
            mark(bars, "bar", bar, height=11, opacity=0.8),
            mark(plain_bars, "rule", error, color=ink, strokeWidth=1.5),
            mark(plain_bars, "text", label, align="left", dx=6, color=ink, fontSize=11),
        ],
    }
