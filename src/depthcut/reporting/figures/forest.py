"""The figure of paired differences to the first model, task by task, with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Evaluation, Task, TaskResults
from depthcut.reporting.benchmarks.scores import KINDS, PERCENT, Kind, kind_of, p_words, scale_of
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

LINE = 8
"""Pixels of a model's interval."""
INTERVAL = 1.96
"""Standard errors on each side: 95 %, by the normal distribution."""


@dataclass(frozen=True)
class _Step:
    """One model's difference to the first, as the plot shows it."""

    task: str
    model: str
    value: float
    low: float
    high: float
    kind: Kind
    p_value: float | None
    items: int
    tip: str


def forest(evaluation: Evaluation, results: TaskResults) -> Figure:
    """Paired differences to the first model with their 95 % intervals, one colour a model."""
    first, *others = (each.name for each in evaluation.models)
    panels: list[Spec] = []
    every: list[_Step] = []
    for measure, tasks in _measures(results).items():
        steps = [
            step
            for task in tasks
            for model in others
            if (step := _step(results, task, model)) is not None
        ]
        if steps:
            panels.append(_panel(measure, steps, others))
            every += steps
    return Figure(
        name="benchmark-differences",
        title=f"Differences to {first}, task by task",
        caption=(
            "Paired over the same questions, with 95 % intervals; filled: significant at 5 %, "
            "hollow: not. The line at 0 is the first model."
        ),
        spec=chart(vconcat=panels, resolve={"scale": {"color": "shared"}}),
        columns=("task", "model", "difference", "low", "high", "p", "verdict", "items"),
        rows=tuple(
            (
                each.task,
                each.model,
                each.value,
                each.low,
                each.high,
                each.p_value,
                KINDS[each.kind],
                each.items,
            )
            for each in every
        ),
    )


def _measures(results: TaskResults) -> dict[str, list[Task]]:
    """Tasks by what their axis counts: all shares on one, each other metric on its own."""
    found: dict[str, list[Task]] = {}
    for task in results.chief:
        shares = scale_of(results, task) is PERCENT
        lower = "" if task.higher_is_better else ", lower is better"
        found.setdefault("points of 100" if shares else f"{task.metric}{lower}", []).append(task)
    return found


def _step(results: TaskResults, task: Task, model: str) -> _Step | None:
    found = results.difference(model, task.name)
    if found is None:
        return None
    scale, kind = scale_of(results, task), kind_of(task, found)
    value = scale.factor * found.difference.value
    reach = INTERVAL * scale.factor * found.difference.stderr
    words = (scale.step_words(found.difference), KINDS[kind], p_words(found.p_value))
    return _Step(
        task=task.name,
        model=model,
        value=value,
        low=value - reach,
        high=value + reach,
        kind=kind,
        p_value=found.p_value,
        items=task.items,
        tip=f"{task.name}, {model}: {', '.join(filter(None, words))}, {task.items:,} questions",
    )


def _panel(measure: str, steps: Sequence[_Step], models: Sequence[str]) -> Spec:
    rows: list[Spec] = [
        {
            "task": each.task,
            "model": each.model,
            "value": each.value,
            "low": each.low,
            "high": each.high,
            "clear": each.kind in ("better", "worse"),
            "tip": each.tip,
        }
        for each in steps
    ]
    tasks = list(dict.fromkeys(each.task for each in steps))
    y: Spec = {
        "field": "task",
        "type": "nominal",
        "sort": tasks,
        "title": None,
        "scale": {"paddingInner": 0.25, "paddingOuter": 0.15},
        "axis": {"ticks": False, "labelLimit": 120, "minExtent": 84, "grid": True,
                 "bandPosition": 0, "tickBand": "extent"},
    }  # fmt: skip
    offset: Spec = {"field": "model", "type": "nominal", "sort": list(models)}
    x: Spec = {"type": "quantitative", "title": measure, "axis": {"tickCount": 6}}
    shared: Spec = {"y": y, "yOffset": offset, "color": colour_legend("model", models)}
    interval = {**shared, "x": {**x, "field": "low"}, "x2": {"field": "high"}}
    value = {**shared, "x": {**x, "field": "value"}}
    hollow = [row for row in rows if not row["clear"]]
    clear = [row for row in rows if row["clear"]]
    layers = [
        mark(unlabelled(rows), "rule", interval, strokeWidth=1.5),
        {
            "data": {"values": [{"zero": 0}]},
            "mark": {"type": "rule", "aria": False, "color": light("ink"), "strokeWidth": 1},
            "encoding": {"x": {**x, "field": "zero"}},
        },
    ]
    if hollow:
        style: Spec = {"fill": light("paper"), "strokeWidth": 1.4, "opacity": 1}
        layers.append(mark(hollow, "point", value, size=22, **style))
    if clear:
        layers.append(dots(clear, value, size=26))
    return {
        "width": WIDTH - 50,
        "height": {"step": max(LINE, 20 // len(models)), "for": "offset"}
        if len(models) > 1
        else {"step": 22},
        "layer": layers,
    }
