"""The figure of what is left above chance against how many layers went."""

from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Estimate, Evaluation, ModelFacts, Task, TaskResults
from depthcut.reporting.benchmarks.scores import PERCENT
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
from depthcut.reporting.words import ERRORS

HEIGHT = 250
AVERAGE = "average"


@dataclass(frozen=True)
class _Left:
    """Share of the first model's score above chance at a number of removed layers."""

    task: str
    model: str
    removed: int
    found: Estimate


def above_chance(evaluation: Evaluation, results: TaskResults) -> Figure:
    """Share of the first model's score above chance against how many layers went.

    The figure by which Gromov et al. (arXiv:2403.17887) show that answers hold for a while and
    then fall to chance at one depth. Only models that are shallower forms of the first one.
    """
    points = _left(evaluation, results)
    tasks = list(dict.fromkeys(each.task for each in points if each.task != AVERAGE))
    coloured = tasks if len(tasks) <= len(SERIES) else []
    encoding = _depth_encoding(points, coloured)
    layers = [
        layer
        for task in tasks
        for layer in _line(
            [each for each in points if each.task == task], encoding, coloured=bool(coloured)
        )
    ]
    mean = [each for each in points if each.task == AVERAGE]
    grey = "" if coloured else "Grey: single tasks. "
    faint = [task.name for task in results.chief if _faint(evaluation, results, task)]
    missing = (
        f" Without {', '.join(faint)}, where the untouched model is not clearly above chance."
        if faint
        else ""
    )
    return Figure(
        name="benchmark-above-chance",
        title="What is left above chance, by depth",
        caption=(
            "Share of the untouched model's score above chance; 0 is guessing. "
            f"{grey}Thick: the average over tasks, bars one standard error.{missing}"
        ),
        spec=chart(
            width=WIDTH,
            height=HEIGHT,
            layer=[*_levels(encoding), *layers, *_mean_line(mean, encoding)],
        ),
        columns=("task", "model", "layers_removed", "share", "stderr"),
        rows=tuple(
            (each.task, each.model, each.removed, each.found.value, each.found.stderr)
            for each in points
        ),
    )


def removed_layers(first: ModelFacts, other: ModelFacts) -> int | None:
    """How many layers a shallower form of the first model lacks; None: it is another model."""
    same = (first.model_type, first.hidden_size) == (other.model_type, other.hidden_size)
    return first.layers - other.layers if same and other.layers <= first.layers else None


def _left(evaluation: Evaluation, results: TaskResults) -> list[_Left]:
    first = evaluation.models[0].model
    names = [AVERAGE, *(task.name for task in results.chief)]
    points: list[_Left] = []
    for each in evaluation.models[1:]:
        removed = removed_layers(first, each.model)
        if removed is None:
            continue
        average = results.average(each.name)
        if average and average.above_chance:
            points.append(_Left(AVERAGE, each.name, removed, average.above_chance))
        for task in results.chief:
            found = results.difference(each.name, task.name)
            faint = _faint(evaluation, results, task)
            if found and found.above_chance and not faint:
                points.append(_Left(task.name, each.name, removed, found.above_chance))
    if len({each.removed for each in points} - {0}) < 2:
        return []  # one depth makes no line
    whole = Estimate(value=1.0, stderr=0.0)
    known = {each.task for each in points}
    start = [_Left(name, evaluation.models[0].name, 0, whole) for name in names if name in known]
    order = {name: place for place, name in enumerate(names)}
    return sorted([*start, *points], key=lambda each: (order[each.task], each.removed))


def _faint(evaluation: Evaluation, results: TaskResults, task: Task) -> bool:
    """Whether the first model is too near to chance for a share of the rest to mean anything."""
    score = results.score(evaluation.models[0].name, task)
    if task.chance is None or score is None:
        return False
    return score.value - task.chance < ERRORS * (score.stderr or 0.0)


def _depth_encoding(points: Sequence[_Left], coloured: Sequence[str]) -> Spec:
    most = max((each.removed for each in points), default=1)
    low = min((each.found.value for each in points), default=0.0)
    high = max((each.found.value for each in points), default=1.0)
    encoding: Spec = {
        "x": {
            "field": "removed",
            "type": "quantitative",
            "title": "layers removed",
            "scale": {"domain": [-0.3, most + 0.3], "nice": False},
            "axis": {"grid": False, "tickMinStep": 1, "format": "d"},
        },
        "y": {
            "field": "share",
            "type": "quantitative",
            "title": "share of the score above chance",
            "scale": {"domain": [max(-1.0, min(-0.1, low - 0.05)), min(2.0, max(1.1, high + 0.05))],
                      "nice": False},
            "axis": {"format": "%", "tickCount": 6},
        },
    }  # fmt: skip
    if coloured:
        encoding["color"] = colour_legend("task", coloured)
    return encoding


def _line(points: Sequence[_Left], encoding: Spec, *, coloured: bool) -> list[Spec]:
    rows: list[Spec] = [
        {
            "task": each.task,
            "removed": each.removed,
            "share": each.found.value,
            "tip": f"{each.task}, {each.model}: {PERCENT.shown(each.found)} %",
        }
        for each in points
    ]
    style: Spec = {"clip": True}
    if not coloured:
        style |= {"color": light("muted"), "opacity": 0.35}
    drawn = [mark(unlabelled(_one_each(rows)), "line", encoding, strokeWidth=1.2, **style)]
    return [*drawn, dots(rows, encoding, size=14, **style)]


def _mean_line(points: Sequence[_Left], encoding: Spec) -> list[Spec]:
    rows: list[Spec] = [
        {
            "removed": each.removed,
            "share": each.found.value,
            "low": each.found.value - each.found.stderr,
            "high": each.found.value + each.found.stderr,
            "tip": f"{each.task}, {each.model}: {PERCENT.shown(each.found)} %",
        }
        for each in points
    ]
    if not rows:
        return []
    plain = {key: value for key, value in encoding.items() if key != "color"}
    y: Spec = dict(plain["y"])  # type: ignore[call-overload]
    error = plain | {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    style: Spec = {"clip": True, "color": light("ink")}
    return [
        mark(unlabelled(_one_each(rows)), "line", plain, strokeWidth=3, **style),
        mark(unlabelled(rows), "rule", error, strokeWidth=1.5, **style),
        dots(rows, plain, size=42, **style),
    ]


def _levels(encoding: Spec) -> list[Spec]:
    """Where guessing is, and where the untouched model."""
    chance: Spec = {"share": 0, "said": "chance"}
    untouched: Spec = {"share": 1, "said": "untouched"}
    y, muted = encoding["y"], light("muted")
    text: Spec = {"y": y, "text": {"field": "said"}}
    style: Spec = {"fontSize": 11, "color": muted}
    at_left, at_right = text | {"x": {"value": 0}}, text | {"x": {"value": WIDTH}}
    return [
        mark([chance, untouched], "rule", {"y": y}, color=muted, strokeDash=[4, 3], strokeWidth=1),
        mark([chance], "text", at_left, align="left", dy=9, dx=2, **style),
        mark([untouched], "text", at_right, align="right", dy=-7, **style),
    ]


def _one_each(rows: Sequence[Spec]) -> list[Spec]:
    """One row a depth, the first: healed and repaired models stand beside the line."""
    found: dict[object, Spec] = {}
    for row in rows:
        found.setdefault(row["removed"], row)
    return list(found.values())
