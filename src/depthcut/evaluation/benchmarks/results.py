"""Every model's answers to every task, as scores, paired differences and averages."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from depthcut.errors import SettingsError
from depthcut.evaluation import pairing
from depthcut.evaluation.benchmarks.answers import Answers, Item, Unit
from depthcut.records import Average, Difference, Estimate, Flip, Score, Task, TaskResults

_EXAMPLES = 4
"""Items that changed, shown of each way."""

_Pair = tuple[Item, Item]
"""The first model's and another's answer to one question."""

_SAME = 1e-9
"""Two means of the same numbers, added in another order."""


@dataclass(frozen=True)
class _Judged:
    """One model on one task, or on a group: the tasks in it."""

    answers: Answers
    members: tuple[Answers, ...]

    @property
    def task(self) -> Task:
        return self.answers.task

    @cached_property
    def value(self) -> float | None:
        metric = self.task.metric
        return next((each.value for each in self.answers.metrics if each.name == metric), None)

    @cached_property
    def scores(self) -> list[list[float]] | None:
        """Of the items of each task, by its chief metric; None: it scores no single items."""
        metric = self.task.metric
        if not all(metric in item.scores for part in self.members for item in part.items):
            return None
        return [[item.scores[metric] for item in part.items] for part in self.members]

    @property
    def questions(self) -> list[tuple[int, str]]:
        """Numbers and right answers: the same for two models that are compared."""
        return [(item.number, item.right) for part in self.members for item in part.items]

    @cached_property
    def weights(self) -> list[float]:
        """Of the items, where the metric is a mean over words or bytes."""
        metric = self.task.metric
        items = [item for part in self.members for item in part.items]
        return [item.weights[metric] for item in items if metric in item.weights]

    @cached_property
    def by_items(self) -> bool:
        """Whether the score is the mean over all items, each with the same weight."""
        if self.weights or self.scores is None or self.value is None:
            return False
        flat = [score for part in self.scores for score in part]
        return bool(flat) and abs(sum(flat) / len(flat) - self.value) < _SAME

    @cached_property
    def by_tasks(self) -> bool:
        """Whether the score is the mean over the tasks, each with the same weight."""
        if self.weights or not self.scores or self.value is None or not all(self.scores):
            return False
        means = [sum(part) / len(part) for part in self.scores]
        return abs(sum(means) / len(means) - self.value) < _SAME


def task_results(units: Mapping[str, Sequence[Unit]], *, samples: str = "") -> TaskResults:
    """All models side by side; the first is the reference.

    Args:
        units: For each model, what was asked for, in the same order.
        samples: Name of the file that holds every item.

    Raises:
        SettingsError: Two models were not shown the same questions, or two names of --tasks have
            a task in common.
    """
    judged = {name: _judged(each) for name, each in units.items()}
    first, *others = judged
    tasks = {name: _same_task(name, judged) for name in judged[first]}
    differences = tuple(
        difference
        for name in others
        for task in tasks
        if (difference := _difference(name, judged[first][task], judged[name][task]))
    )
    chief = [name for name, task in tasks.items() if not task.group and _averaged(judged, name)]
    return TaskResults(
        harness=units[first][0].harness,
        tasks=tuple(tasks.values()),
        scores=tuple(
            Score(model=name, task=task, metric=each.name, value=each.value, stderr=each.stderr)
            for name in judged
            for task, of in judged[name].items()
            for each in of.answers.metrics
        ),
        differences=differences,
        averages=tuple(_averages(judged, chief, differences)),
        seconds={name: round(sum(each.seconds for each in of), 3) for name, of in units.items()},
        samples=samples,
    )


def _judged(units: Sequence[Unit]) -> dict[str, _Judged]:
    every = [answers for unit in units for answers in unit.answers]
    found: dict[str, _Judged] = {}
    for each in every:
        if (other := found.get(each.task.name)) is not None:
            raise SettingsError(
                f"--tasks asks for {each.task.name} twice (in {other.task.asked} and "
                f"{each.task.asked}): evaluate in two commands"
            )
        members = [one for one in every if one.task.group == each.task.name]
        found[each.task.name] = _Judged(each, tuple(members or [each]))
    return found


def _same_task(name: str, judged: Mapping[str, Mapping[str, _Judged]]) -> Task:
    """The task, once all models were found to have been asked the same of it."""
    first = next(iter(judged.values()))[name]
    for model, of in judged.items():
        if of[name].task != first.task or of[name].questions != first.questions:
            raise SettingsError(
                f"{model} was asked something else of {name} than the first model: evaluate all "
                "of them in one command, with --fresh"
            )
    return first.task


def _difference(model: str, before: _Judged, after: _Judged) -> Difference | None:
    estimate = _paired(before, after)
    if estimate is None:
        return None
    changed = _flips(before, after)
    return Difference(
        model=model,
        task=after.task.name,
        difference=estimate,
        p_value=pairing.normal_p(estimate)
        if changed is None or not before.by_items
        else pairing.mcnemar(len(changed[0]), len(changed[1])),
        gained=len(changed[0]) if changed else 0,
        lost=len(changed[1]) if changed else 0,
        above_chance=_above_chance(before, after, estimate),
        flips=tuple(_examples(*changed)) if changed and not after.task.group else (),
    )


def _paired(before: _Judged, after: _Judged) -> Estimate | None:
    if before.scores is None or after.scores is None or before.value is None:
        return None
    sizes = [len(part) for part in before.scores]
    if sum(sizes) < 2 or max(sizes) < 2:
        return None
    if before.weights:
        return _paired_by_weights(before, after)
    if before.by_items:
        return pairing.pooled_paired(before.scores, after.scores)
    if before.by_tasks and min(sizes) > 1:
        pairs = zip(before.scores, after.scores, strict=True)
        return pairing.average([pairing.paired(*pair) for pair in pairs])
    return None


def _paired_by_weights(before: _Judged, after: _Judged) -> Estimate | None:
    """Of a mean over words or bytes; None: the score is exp of it, in another unit."""
    old, new = ([*chain.from_iterable(each.scores or ())] for each in (before, after))
    if sum(weight > 0 for weight in before.weights) < 2:
        return None
    mean = pairing.weighted_paired([0.0] * len(old), old, before.weights)
    if before.value is None or not math.isclose(mean.value, before.value, rel_tol=_SAME):
        return None
    return pairing.weighted_paired(old, new, before.weights)


def _estimate(judged: _Judged) -> Estimate | None:
    metric = judged.task.metric
    for each in judged.answers.metrics:
        if each.name == metric and each.stderr is not None:
            return Estimate(value=each.value, stderr=each.stderr)
    return None


def _above_chance(before: _Judged, after: _Judged, difference: Estimate) -> Estimate | None:
    chance, first, other = before.task.chance, _estimate(before), _estimate(after)
    if chance is None or first is None or other is None:
        return None
    return pairing.share_of_means(first, other, difference, chance)


def _flips(before: _Judged, after: _Judged) -> tuple[list[_Pair], list[_Pair]] | None:
    """Items gained and lost; None where items are not right or wrong."""
    gained: list[_Pair] = []
    lost: list[_Pair] = []
    parts = zip(before.members, after.members, before.scores or [], after.scores or [], strict=True)
    for one, other, old, new in parts:
        found = pairing.flips(old, new)
        if found is None:
            return None
        gained += [(one.items[place], other.items[place]) for place in found.gained]
        lost += [(one.items[place], other.items[place]) for place in found.lost]
    return gained, lost


def _examples(gained: Sequence[_Pair], lost: Sequence[_Pair]) -> Iterator[Flip]:
    for pairs, is_gain in ((lost, False), (gained, True)):
        for before, after in pairs[:_EXAMPLES]:
            yield Flip(
                item=before.number,
                gained=is_gain,
                question=before.question,
                right=before.right,
                before=before.answer,
                after=after.answer,
            )


def _averaged(judged: Mapping[str, Mapping[str, _Judged]], task: str) -> bool:
    """Whether a task's score runs from 0 to 1, more is better, and its error is known."""
    each = [of[task] for of in judged.values()]
    return each[0].task.chance is not None and all(_estimate(one) is not None for one in each)


def _averages(
    judged: Mapping[str, Mapping[str, _Judged]],
    tasks: Sequence[str],
    differences: Sequence[Difference],
) -> Iterator[Average]:
    if len(tasks) < 2:
        return
    paired = {(each.model, each.task): each.difference for each in differences}
    first = next(iter(judged))
    chances = [judged[first][task].task.chance or 0.0 for task in tasks]
    means = {
        name: pairing.average([e for task in tasks if (e := _estimate(of[task])) is not None])
        for name, of in judged.items()
    }
    for name, value in means.items():
        known = [paired[name, task] for task in tasks if (name, task) in paired]
        difference = pairing.average(known) if len(known) == len(tasks) else None
        yield Average(
            model=name,
            tasks=tuple(tasks),
            value=value,
            difference=difference,
            p_value=None if difference is None else pairing.normal_p(difference),
            above_chance=None
            if difference is None
            else pairing.share_of_means(
                means[first], value, difference, sum(chances) / len(chances)
            ),
        )
