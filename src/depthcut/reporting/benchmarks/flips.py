"""Questions that a model answers otherwise than the first one: how many, and some to read."""

from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.records import Flip, Task, TaskResults
from depthcut.reporting.words import shortened

EXAMPLES = 3
"""Of each task and model, on the page."""
_QUESTION = 240
_ANSWER = 120
"""Characters, at most."""


@dataclass(frozen=True)
class Example:
    """One question, as the page shows it."""

    gained: bool
    place: str
    """Task and number of the item."""
    question: str
    right: str
    before: str
    after: str


@dataclass(frozen=True)
class Flipped:
    """What one model answers otherwise."""

    model: str
    lost: int
    gained: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class FlippedTask:
    """A task on which any model answers otherwise."""

    name: str
    items: int
    models: tuple[Flipped, ...]

    @property
    def examples(self) -> int:
        return sum(len(each.examples) for each in self.models)


def flipped_tasks(results: TaskResults, models: Sequence[str]) -> list[FlippedTask]:
    """Tasks whose answers are right or wrong, with each model after the first."""
    found = []
    for task in results.chief:
        flipped = tuple(
            each for model in models[1:] if (each := _flipped(results, task, model)) is not None
        )
        if any(each.lost or each.gained for each in flipped):
            found.append(FlippedTask(task.name, task.items, flipped))
    return found


def _flipped(results: TaskResults, task: Task, model: str) -> Flipped | None:
    difference = results.difference(model, task.name)
    if difference is None:
        return None
    flips = [(task.name, each) for each in difference.flips] or _inside(results, task, model)
    lost = [each for each in flips if not each[1].gained]
    gained = [each for each in flips if each[1].gained]
    some = lost[: EXAMPLES - bool(gained)]
    some += gained[: EXAMPLES - len(some)]
    examples = tuple(_example(name, flip) for name, flip in some)
    return Flipped(model, difference.lost, difference.gained, examples)


def _inside(results: TaskResults, group: Task, model: str) -> list[tuple[str, Flip]]:
    """A group's examples are those of the tasks in it."""
    return [
        (task.name, flip)
        for task in results.tasks
        if task.group == group.name and (found := results.difference(model, task.name))
        for flip in found.flips
    ]


def _example(task: str, flip: Flip) -> Example:
    return Example(
        gained=flip.gained,
        place=f"{task}, question {flip.item}",
        question=shortened(flip.question, _QUESTION),
        right=shortened(flip.right, _ANSWER),
        before=shortened(flip.before, _ANSWER),
        after=shortened(flip.after, _ANSWER),
    )
