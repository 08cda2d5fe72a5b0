"""Benchmarks in sentences: what differs significantly, after how many questions, and what not."""

from dataclasses import dataclass

from depthcut.records import Average, Difference, Task, TaskResults
from depthcut.reporting.benchmarks.scores import (
    PERCENT,
    Kind,
    by_chance,
    judge,
    kind_of,
    scale_of,
)
from depthcut.reporting.words import plain

NAMED = 4
"""Tasks that a sentence names at most; the table has them all."""


@dataclass(frozen=True)
class Finding:
    """What one model's answers allow to say of it beside the first."""

    model: str
    on_average: str
    by_task: str


def findings(results: TaskResults, models: tuple[str, ...]) -> list[Finding]:
    """For each model after the first its average, then task by task."""
    return [
        Finding(
            model,
            _on_average(results, models[0], model),
            " ".join(_by_task(results, model)),
        )
        for model in models[1:]
    ]


def average_sentence(average: Average, subject: str, first: str) -> str:
    """One model's mean beside the first's: for the page's opening."""
    tasks = f"{len(average.tasks)} benchmarks"
    if average.difference is None:
        return f"On average of {tasks} {subject} scores {PERCENT.shown(average.value)} %."
    kind = judge(average.difference, average.p_value)
    value = f"{subject} scores {PERCENT.shown(average.value)} % on average"
    if kind in ("same", "open"):
        said = "not significant" if kind == "same" else "by an unknown error"
        by = PERCENT.step_words(average.difference)
        return f"On {tasks} {value}; the difference to {first} is {said} ({by})."
    return f"On {tasks} {value}, {_apart(average, kind)} {first}, a significant difference."


def chances(results: TaskResults) -> str:
    """How many differences would pass by chance alone; empty where too few were tested."""
    tested, expected = by_chance(results)
    if tested < 10:
        return ""
    return (
        f"Of {tested} differences that were tested at 5 %, about {plain(expected, 0)} would pass "
        "even if all models were alike."
    )


def _on_average(results: TaskResults, first: str, model: str) -> str:
    average = results.average(model)
    if average is None or average.difference is None:
        return ""
    kind = judge(average.difference, average.p_value)
    by = PERCENT.step_words(average.difference)
    apart = {
        "same": f"not significantly different from {first} ({by})",
        "open": f"{by} against {first}, error unknown",
    }
    said = apart.get(kind) or f"{_apart(average, kind)} {first}, significantly"
    value = f"{PERCENT.shown(average.value)} % on average of {len(average.tasks)}, {said}."
    if average.above_chance is None:
        return value
    left = PERCENT.shown(average.above_chance)
    return f"{value} Of what {first} scores above chance {left} % is left."


def _apart(average: Average, kind: Kind) -> str:
    assert average.difference is not None
    by = PERCENT.step_words(average.difference).lstrip("−+")
    return f"{by} {'below' if kind == 'worse' else 'above'}"


def _by_task(results: TaskResults, model: str) -> list[str]:
    found: dict[Kind, list[tuple[Task, Difference]]] = {}
    chief = results.chief
    for task in chief:
        if difference := results.difference(model, task.name):
            found.setdefault(kind_of(task, difference), []).append((task, difference))
    sentences = []
    for kind in ("worse", "better"):
        if some := found.get(kind):
            some.sort(key=lambda pair: pair[1].p_value or 0.0)
            named = _listed(results, some)
            sentences.append(f"Significantly {kind} on {len(some)} of {len(chief)} tasks: {named}.")
    if some := found.get("same"):
        where = "any task" if len(some) == len(chief) else f"{len(some)} of {len(chief)}"
        sentences.append(f"Not significant on {where}: {_listed(results, some)}.")
    if some := found.get("open"):
        sentences.append(f"No error is known on {', '.join(task.name for task, _ in some)}.")
    return sentences


def _listed(results: TaskResults, some: list[tuple[Task, Difference]]) -> str:
    named = [
        f"{task.name} ({scale_of(results, task).step_words(found.difference)})"
        for task, found in some[:NAMED]
    ]
    rest = len(some) - len(named)
    more = f" and {rest} more" if rest else ""
    return f"{', '.join(named)}{more}, {_after([task for task, _ in some])}"


def _after(tasks: list[Task]) -> str:
    """After how many questions: "each after 240 questions"."""
    few, many = min(task.items for task in tasks), max(task.items for task in tasks)
    if few == many:
        return f"{'each ' if len(tasks) > 1 else ''}after {few:,} questions"
    return f"after {few:,} to {many:,} questions"
