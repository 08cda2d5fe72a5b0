"""What the page's section on benchmarks shows, put together, with its figures and files."""

from dataclasses import dataclass

from depthcut.records import Evaluation, TaskResults
from depthcut.reporting.benchmarks.exports import tasks_csv, tasks_tex
from depthcut.reporting.benchmarks.flips import FlippedTask, flipped_tasks
from depthcut.reporting.benchmarks.model_cards import model_cards
from depthcut.reporting.benchmarks.scores import (
    MARKS_SAID,
    Line,
    average_lines,
    groups,
    task_lines,
)
from depthcut.reporting.benchmarks.story import Finding, chances, findings
from depthcut.reporting.figures.depths import above_chance
from depthcut.reporting.figures.figure import Figure
from depthcut.reporting.figures.forest import forest

_SHORT = 16
"""Differences, at most, whose figure is lower than the one of what is left above chance."""


@dataclass(frozen=True)
class Section:
    """The section's parts."""

    findings: list[Finding]
    short: bool
    """The differences are few: what stands beside their figure is higher than it."""
    note: str
    """What the numbers of the table are."""
    lines: list[Line]
    averages: list[Line]
    groups: list[tuple[str, list[Line]]]
    flips: list[FlippedTask]
    chances: str


def benchmark_section(evaluation: Evaluation, results: TaskResults) -> Section:
    """All that the template needs."""
    models = tuple(each.name for each in evaluation.models)
    return Section(
        findings=findings(results, models),
        short=len(results.chief) * (len(models) - 1) <= _SHORT,
        note=_note(models),
        lines=task_lines(results, models, results.chief),
        averages=average_lines(results, models),
        groups=[
            (task.name, task_lines(results, models, inside)) for task, inside in groups(results)
        ],
        flips=flipped_tasks(results, models),
        chances=chances(results),
    )


def benchmark_figures(evaluation: Evaluation | None) -> list[Figure]:
    """The figures that the record allows: none where one model was judged."""
    if evaluation is None or evaluation.tasks is None or len(evaluation.models) < 2:
        return []
    drawn = (forest(evaluation, evaluation.tasks), above_chance(evaluation, evaluation.tasks))
    return [figure for figure in drawn if figure.rows]


def benchmark_files(evaluation: Evaluation | None) -> dict[str, str]:
    """File name to content; none where no benchmark was run."""
    if evaluation is None or evaluation.tasks is None:
        return {}
    return {
        "tasks.csv": tasks_csv(evaluation, evaluation.tasks),
        "tasks.tex": tasks_tex(evaluation, evaluation.tasks),
        **model_cards(evaluation),
    }


def _note(models: tuple[str, ...]) -> str:
    shown = "In % where they are shares, else as the metric counts, ± one standard error."
    if len(models) < 2:
        return shown
    return (
        f"{shown} Below, the difference to {models[0]} on the same questions and its paired "
        f"error; {MARKS_SAID}."
    )
