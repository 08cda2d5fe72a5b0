"""Benchmarks as tables: what each model scores on each task, and what sets it apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from depthcut.records import Average, Difference, Estimate, Task, TaskResults
from depthcut.reporting.words import estimate, plain

LEVEL = 0.05
"""A difference counts as significant where chance brings one as large less often than this."""

Kind = Literal["better", "worse", "same", "open"]
KINDS: dict[Kind, str] = {
    "better": "significantly better",
    "worse": "significantly worse",
    "same": "not significant",
    "open": "error unknown",
}
MARKS: dict[Kind, str] = {"better": "*", "worse": "*", "same": "n.s.", "open": "?"}
"""The same where there is no room."""
MARKS_SAID = f"*: significant at {LEVEL:.0%}; n.s.: not significant".replace("%", " %")


@dataclass(frozen=True)
class Scale:
    """How a task's numbers are shown."""

    factor: float
    decimals: int | None
    """None: as many as the error allows."""
    unit: str
    """Of scores; empty: the metric's own."""
    step: str
    """Of differences."""

    def shown(self, value: Estimate, *, sign: bool = False) -> str:
        """The number and its error: "52.3 ± 1.4"."""
        return estimate(self._scaled(value), sign=sign, decimals=self.decimals)

    def bare(self, value: float) -> str:
        """A number without error."""
        return plain(self.factor * value, 1 if self.decimals is None else self.decimals)

    def step_words(self, value: Estimate) -> str:
        """A difference in a sentence: "−3.2 ± 1.0 points"."""
        return " ".join(filter(None, (self.shown(value, sign=True), self.step)))

    def _scaled(self, value: Estimate) -> Estimate:
        return Estimate(value=self.factor * value.value, stderr=self.factor * value.stderr)


PERCENT = Scale(factor=100, decimals=1, unit="%", step="points")
AS_IT_IS = Scale(factor=1, decimals=None, unit="", step="")


@dataclass(frozen=True)
class Cell:
    """One model on one task."""

    score: str
    """With its error; a dash where the model was not judged."""
    difference: str = ""
    """To the first model, with its paired error; empty for the first."""
    kind: Kind | None = None
    p_value: str = ""

    @property
    def said(self) -> str:
        """What the difference allows to say; empty for the first model."""
        return KINDS[self.kind] if self.kind else ""

    @property
    def mark(self) -> str:
        return MARKS[self.kind] if self.kind else ""


@dataclass(frozen=True)
class Line:
    """A task or a mean, and a cell for each model."""

    name: str
    note: str
    """Metric and examples."""
    items: str
    chance: str
    cells: tuple[Cell, ...]


def scale_of(results: TaskResults, task: Task) -> Scale:
    """In percent where all scores are shares and higher is better, else as they are."""
    values = [
        each.value for each in results.scores if (each.task, each.metric) == _key(task)
    ]  # fmt: skip
    shares = task.higher_is_better and all(0 <= value <= 1 for value in values)
    return PERCENT if shares else AS_IT_IS


def judge(difference: Estimate, p_value: float | None, *, higher_is_better: bool = True) -> Kind:
    """What a difference to the first model allows to say at the level of 5 %."""
    if p_value is None:
        return "open"
    if p_value >= LEVEL or difference.value == 0:
        return "same"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def kind_of(task: Task, found: Difference) -> Kind:
    """The same, of a task."""
    return judge(found.difference, found.p_value, higher_is_better=task.higher_is_better)


def task_lines(results: TaskResults, models: Sequence[str], tasks: Sequence[Task]) -> list[Line]:
    """One line a task, one cell a model."""
    return [_line(results, models, task) for task in tasks]


def groups(results: TaskResults) -> list[tuple[Task, tuple[Task, ...]]]:
    """Tasks that hold others, each with these."""
    found = []
    for task in results.chief:
        inside = tuple(each for each in results.tasks if each.group == task.name)
        if inside:
            found.append((task, inside))
    return found


def average_lines(results: TaskResults, models: Sequence[str]) -> list[Line]:
    """The mean over tasks, and what is left of the first model's mean above chance."""
    found = [results.average(model) for model in models]
    counted = next((each.tasks for each in found if each), ())
    if not counted:
        return []
    lines = [
        Line(
            name=f"average of {len(counted)}",
            note="each task with the same weight",
            items="",
            chance="",
            cells=tuple(_average_cell(each) for each in found),
        )
    ]
    left = [each.above_chance if each else None for each in found]
    if any(left):
        cells = tuple(Cell(PERCENT.shown(each) if each else "–") for each in left)
        lines.append(Line("left above chance", "of the first model's average", "", "", cells))
    return lines


def flip_lines(results: TaskResults, models: Sequence[str]) -> list[Line]:
    """Items lost and gained against the first model: "−34 +12"; tasks where any is known."""
    lines = []
    for task in results.chief:
        found = [results.difference(model, task.name) for model in models[1:]]
        if any(each and (each.lost or each.gained) for each in found):
            cells = tuple(
                Cell(f"−{each.lost} +{each.gained}" if each else "–") for each in found
            )  # fmt: skip
            lines.append(Line(task.name, task_note(task), items_words(task), "", cells))
    return lines


def by_chance(results: TaskResults) -> tuple[int, float]:
    """Differences that were tested, and how many pass by chance alone if all models are alike."""
    names = {task.name for task in results.chief}
    tested = [
        each for each in results.differences if each.task in names and each.p_value is not None
    ]
    return len(tested), LEVEL * len(tested)


def task_note(task: Task) -> str:
    """Metric and examples: "acc_norm, 10-shot"."""
    lower = "" if task.higher_is_better else ", lower is better"
    return f"{task.metric}, {task.shots}-shot{lower}"


def items_words(task: Task) -> str:
    """How many questions, and of how many: "400 of 10,042"."""
    if task.items == task.items_in_all:
        return f"{task.items:,}"
    return f"{task.items:,} of {task.items_in_all:,}"


def p_words(p_value: float | None) -> str:
    """A p value: "p = 0.031", "p < 0.001"."""
    if p_value is None:
        return ""
    return f"p = {p_value:.3f}" if p_value >= 0.001 else "p < 0.001"


def _line(results: TaskResults, models: Sequence[str], task: Task) -> Line:
    scale = scale_of(results, task)
    cells = []
    for model in models:
        score = results.score(model, task)
        found = results.difference(model, task.name)
        if score is None:
            cells.append(Cell("–"))
            continue
        shown = scale.shown(Estimate(value=score.value, stderr=score.stderr or 0.0))
        cells.append(_cell(shown, scale, found, task) if found else Cell(shown))
    chance = "–" if task.chance is None else scale.bare(task.chance)
    return Line(task.name, task_note(task), items_words(task), chance, tuple(cells))


def _cell(shown: str, scale: Scale, found: Difference, task: Task) -> Cell:
    difference = scale.shown(found.difference, sign=True)
    return Cell(shown, difference, kind_of(task, found), p_words(found.p_value))


def _average_cell(average: Average | None) -> Cell:
    if average is None:
        return Cell("–")
    shown = PERCENT.shown(average.value)
    if average.difference is None:
        return Cell(shown)
    kind = judge(average.difference, average.p_value)
    difference = PERCENT.shown(average.difference, sign=True)
    return Cell(shown, difference, kind, p_words(average.p_value))


def _key(task: Task) -> tuple[str, str]:
    return task.name, task.metric
