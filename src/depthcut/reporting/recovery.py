"""What repair and healing brought back of what the cut lost, and what that took."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from depthcut.records import Estimate, TaskResults
from depthcut.reporting.benchmarks.scores import (
    PERCENT,
    Scale,
    judge,
    kind_of,
    scale_of,
    task_note,
)
from depthcut.reporting.results import Results
from depthcut.reporting.words import duration, estimate, short_source, span, verdict


@dataclass(frozen=True)
class Measure:
    """A text, a benchmark or the average of all: the models of a run by it."""

    name: str
    note: str
    """What is counted."""
    values: tuple[str, ...]
    """Of each judged model of the chain, with errors; a dash where there is none."""
    back: dict[str, Estimate]
    """Model after the cut -> the share of what the cut lost that came back; empty: the cut lost
    nothing that can be told from chance."""


@dataclass(frozen=True)
class Cost:
    """What a stage after the cut took."""

    stage: str
    how: str
    text: str
    tokens: int
    time: str
    changed: str
    """Which weights."""


def came_back(cut: Estimate, now: Estimate) -> Estimate:
    """The share of a loss that was made good: 1 - now / cut; 0 none, 1 all, below 0 more was lost.

    Args:
        cut: What the cut lost: its paired difference to the model before, not 0.
        now: What is still lost, against the same model.

    Returns:
        The share, with the error of a ratio of independent differences (delta method). Both are
        taken on the same tokens or questions, where what is hard for the one is hard for the
        other, so the error is rather too large.
    """
    left = now.value / cut.value
    error = math.hypot(now.stderr, left * cut.stderr) / abs(cut.value)
    return Estimate(value=1 - left, stderr=error)


def on_text(results: Results) -> Measure | None:
    """The models on the text that judged them; None: not both the cut and a later one were."""
    evaluation = results.evaluation
    text = evaluation.text if evaluation else None
    if text is None or not _after(results):
        return None
    found = {link.name: results.comparison(model) for link, model in results.judged}
    lost = {name: each.loss_difference for name, each in found.items() if each}
    perplexities = [model.perplexity for _, model in results.judged]
    return _by_perplexity(results, text.source, perplexities, lost)


def on_each_text(results: Results) -> list[Measure]:
    """The models on each of several texts by itself; none as above, or where there is one text."""
    names = [link.name for link, _ in results.judged]
    found = []
    for on_one in zip(*(model.texts for _, model in results.judged), strict=True):
        lost = {
            name: each.loss_difference
            for name, each in zip(names, on_one, strict=True)
            if each.loss_difference
        }
        perplexities = [each.perplexity for each in on_one]
        found.append(_by_perplexity(results, on_one[0].source, perplexities, lost))
    return found if _after(results) else []


def on_average(results: Results) -> Measure | None:
    """The models' average over benchmarks; None as above, or without an average."""
    tasks = results.evaluation.tasks if results.evaluation else None
    if tasks is None or not tasks.averages or not _after(results):
        return None
    found = {link.name: tasks.average(model.name) for link, model in results.judged}
    lost = {name: each.difference for name, each in found.items() if each and each.difference}
    cut = found.get("pruned")
    worse = cut and cut.difference and judge(cut.difference, cut.p_value) == "worse"
    return Measure(
        f"average of {len(tasks.averages[0].tasks)}",
        "%",
        tuple(_shown(PERCENT, each.value if each else None) for each in found.values()),
        _back(results, lost) if worse else {},
    )


def measures(results: Results) -> list[Measure]:
    """Everything that the models of a run were judged by."""
    tasks = results.evaluation.tasks if results.evaluation else None
    by_task = _on_tasks(results, tasks) if tasks and _after(results) else ()
    every = (on_text(results), *on_each_text(results), *by_task, on_average(results))
    return [each for each in every if each]


def costs(results: Results) -> list[Cost]:
    """What repair and healing took, as far as there are records."""
    found = []
    if repair := results.repair:
        tensors = {name for block in repair.blocks for name in block.tensors}
        found.append(
            Cost(
                "repair",
                repair.settings.method + ", in closed form" * bool(repair.fitted_tokens),
                short_source(repair.text.source),
                repair.fitted_tokens + repair.held_out_tokens,
                duration(repair.origin.seconds),
                f"{len(tensors)} tensor{'s' * (len(tensors) != 1)}",
            )
        )
    if heal := results.heal:
        steps = heal.losses[-1][0]
        taught = f"taught by {short_source(heal.teacher.source)}" if heal.teacher else ""
        found.append(
            Cost(
                "healing",
                ", ".join(filter(None, (f"{heal.settings.method}, {steps} steps", taught))),
                short_source(heal.text.source),
                heal.trained_tokens,
                duration(max(heal.origin.seconds, heal.training_seconds)),
                f"{heal.trained_parameters:,} parameters",
            )
        )
    return found


def repaired_rows(results: Results) -> list[tuple[str, ...]]:
    """For each removed block, the error where it ended: cut, and with the layer before repaired."""
    return [
        (
            span([(block.start, block.stop)]),
            _percent(block.error_before),
            _percent(block.error_after),
        )
        for block in (results.repair.blocks if results.repair else ())
    ]


def solved_rows(results: Results) -> list[tuple[str, ...]]:
    """For each solve: block, layer, error before, after, ridge or strength, condition, tensors."""

    def either(*numbers: float | None) -> str:
        return next((f"{each:g}" for each in numbers if each is not None), "–")

    return [
        (
            span([(block.start, block.stop)]) if step is block.steps[0] else "",
            str(step.layer),
            _percent(step.error_before),
            _percent(step.error_after),
            either(step.ridge, step.strength),
            "–" if step.condition is None else f"{step.condition:.1e}",
            ", ".join(map(_in_layer, step.tensors)),
        )
        for block in (results.repair.blocks if results.repair else ())
        for step in block.steps
    ]


def _on_tasks(results: Results, tasks: TaskResults) -> Iterator[Measure]:
    for task in tasks.chief:
        scale = scale_of(tasks, task)
        scores = [tasks.score(model.name, task) for _, model in results.judged]
        found = {
            link.name: tasks.difference(model.name, task.name) for link, model in results.judged
        }
        cut = found.get("pruned")
        lost = {name: each.difference for name, each in found.items() if each}
        yield Measure(
            task.name,
            ", ".join(filter(None, (task_note(task), scale.unit))),
            tuple(
                _shown(scale, Estimate(value=each.value, stderr=each.stderr or 0) if each else None)
                for each in scores
            ),
            _back(results, lost) if cut and kind_of(task, cut) == "worse" else {},
        )


def _by_perplexity(
    results: Results,
    source: str,
    perplexities: Sequence[Estimate | None],
    lost: Mapping[str, Estimate],
) -> Measure:
    cut = lost.get("pruned")
    return Measure(
        short_source(source),
        "perplexity",
        tuple(estimate(each) if each else "–" for each in perplexities),
        _back(results, lost) if cut and verdict(cut).kind == "worse" else {},
    )


def _back(results: Results, lost: Mapping[str, Estimate]) -> dict[str, Estimate]:
    cut = lost["pruned"]
    return {name: came_back(cut, lost[name]) for name in _after(results) if name in lost}


def _after(results: Results) -> list[str]:
    """The judged models after the cut; none where the cut itself was not judged."""
    names = [link.name for link, _ in results.judged]
    return names[names.index("pruned") + 1 :] if "pruned" in names else []


def _shown(scale: Scale, value: Estimate | None) -> str:
    return scale.shown(value) if value else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _in_layer(tensor: str) -> str:
    """A tensor's name within its layer: "mlp.down_proj"."""
    return re.sub(r"^.*?\.\d+\.|\.weight$", "", tensor)
