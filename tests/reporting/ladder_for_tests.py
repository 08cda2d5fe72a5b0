"""An evaluation of a ladder of models on benchmarks, made up item by item but shaped like a real
one: plain Python.
"""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec

from depthcut.records import (
    Average,
    Degeneration,
    Difference,
    Estimate,
    Evaluation,
    Flip,
    Score,
    Task,
    TaskResults,
    write_record,
)
from tests.reporting.run_for_tests import make_evaluation, make_facts

REMOVED = (0, 1, 3, 5, 7, 10)
SUBTASKS = ("anatomy", "astronomy", "marketing", "philosophy", "world_religions")
BENCHMARKS = {
    "hellaswag": ("acc_norm", 0.25, 0.55),
    "arc_easy": ("acc_norm", 0.25, 0.62),
    "arc_challenge": ("acc_norm", 0.25, 0.36),
    "boolq": ("acc", 0.5, 0.66),
    "piqa": ("acc_norm", 0.5, 0.71),
    "winogrande": ("acc", 0.5, 0.57),
    "openbookqa": ("acc_norm", 0.25, 0.34),
    "gsm8k": ("exact_match/strict-match", None, 0.12),
    "squad": ("f1", None, 0.41),
}
"""Name to metric, chance and what the first model scores; of squad an answer may be half right."""
ITEMS = 240


def write_ladder(folder: Path, evaluation: Evaluation) -> Path:
    """A folder as `depthcut evaluate --out` leaves it."""
    write_record(evaluation, folder / "evaluation.json")
    return folder


def make_ladder(
    removed: Sequence[int] = REMOVED,
    *,
    more: int = 0,
    text: bool = True,
    source: str = "smollm2",
    question: str = "Which of these is a metal that is liquid at room temperature?",
) -> Evaluation:
    """One model for each number of removed layers on nine tasks, and on `more` of their kind."""
    facts = [
        make_facts(30 - count, source=name, digest=f"{place:032x}")
        for place, (count, name) in enumerate(zip(removed, _names(removed, source), strict=True))
    ]
    pairs = list(zip(facts, removed, strict=True))
    evaluation = make_evaluation([(each.source, each, 3.3 + 0.12 * count) for each, count in pairs])
    evaluation = msgspec.structs.replace(
        evaluation,
        tasks=make_tasks(
            [(each.source, count) for each, count in pairs], more=more, question=question
        ),
        models=tuple(
            msgspec.structs.replace(each, degeneration=make_degeneration(count))
            for each, count in zip(evaluation.models, removed, strict=True)
        ),
    )
    if text:
        return evaluation
    return msgspec.structs.replace(
        evaluation,
        text=None,
        comparisons=(),
        models=tuple(
            msgspec.structs.replace(each, loss=None, perplexity=None, bits_per_byte=None)
            for each in evaluation.models
        ),
    )


def make_tasks(
    models: Sequence[tuple[str, int]],
    *,
    more: int = 0,
    question: str = "Which of these is a metal that is liquid at room temperature?",
) -> TaskResults:
    """Models, each with how many layers it lost, on all tasks."""
    asked = dict(BENCHMARKS)
    asked |= {f"task_{number}": ("acc", 0.25, 0.5) for number in range(more)}
    tasks: list[Task] = []
    scores: list[Score] = []
    differences: list[Difference] = []
    right: dict[str, list[list[float]]] = {}
    for name, (metric, chance, best) in asked.items():
        right[name] = _answers(name, models, best, chance or 0.0)
        tasks.append(_task(name, metric, chance))
    group = {f"mmlu_{name}": _answers(name, models, 0.33, 0.25, items=60) for name in SUBTASKS}
    right["mmlu"] = [
        [answer for answers in group.values() for answer in answers[place]]
        for place in range(len(models))
    ]
    right |= group
    tasks.append(
        Task(name="mmlu", asked="mmlu:5", shots=5, items=60 * len(SUBTASKS), items_in_all=14_042,
             metric="acc", chance=0.25)
    )  # fmt: skip
    tasks += [_task(name, "acc", 0.25, group="mmlu", items=60) for name in group]
    for task in tasks:
        if task.name in BENCHMARKS and task.metric == "acc_norm":
            scores += _scores(models, task.name, "acc", right[task.name])
        scores += _scores(models, task.name, task.metric, right[task.name])
        differences += _differences(models, task, right[task.name], question)
    averages = tuple(_average(models, place, tasks, right) for place in range(len(models)))
    tasks.append(_task("lambada", "perplexity", None, higher_is_better=False))
    for place, (model, count) in enumerate(models):
        value = 38.0 * math.exp(0.23 * count)
        scores.append(Score(model=model, task="lambada", metric="perplexity", value=value,
                            stderr=0.05 * value))  # fmt: skip
        if place:
            differences.append(
                Difference(
                    model=model,
                    task="lambada",
                    difference=Estimate(value=value - 38.0, stderr=0.04 * value),
                    p_value=0.3 if count < 3 else 0.0001,
                    gained=0,
                    lost=0,
                    above_chance=None,
                )
            )
    return TaskResults(
        harness="lm-eval 0.4.13",
        tasks=tuple(tasks),
        scores=tuple(scores),
        differences=tuple(differences),
        averages=averages,
        seconds={model: 300.0 - 5 * count for model, count in models},
        samples="samples.jsonl.gz",
    )


def make_degeneration(count: int) -> Degeneration:
    def about(value: float, error: float) -> Estimate:
        return Estimate(value=value, stderr=error)

    return Degeneration(
        tokens=about(52 + 3 * count, 4.1),
        unfinished=about(min(1.0, 0.2 + 0.08 * count), 0.1),
        repetition=about(min(0.9, 0.05 + 0.07 * count), 0.03),
        distinct_1=0.61 - 0.04 * count,
        distinct_2=0.92 - 0.05 * count,
        agreement=about(0.9 * math.exp(-0.3 * count), 0.05) if count else None,
        reference_perplexity=about(3.1 + 2.2 * count, 0.4),
    )


def _names(removed: Sequence[int], source: str) -> list[str]:
    return [f"{source}-minus-{count}" if count else source for count in removed]


def _task(
    name: str,
    metric: str,
    chance: float | None,
    *,
    group: str = "",
    items: int = ITEMS,
    higher_is_better: bool = True,
) -> Task:
    return Task(
        name=name,
        group=group,
        asked="mmlu:5" if group else name,
        source=f"invented/{name}",
        version="1",
        output="generate_until" if chance is None else "multiple_choice",
        shots=5 if group else 0,
        items=items,
        items_in_all=10 * items,
        metric=metric,
        higher_is_better=higher_is_better,
        chance=chance,
    )


def _answers(
    name: str, models: Sequence[tuple[str, int]], best: float, chance: float, items: int = ITEMS
) -> list[list[float]]:
    """Whether each model is right on each item: hard items stay hard; a sharp fall at depth."""
    numbers = random.Random(name)
    hardness = [numbers.random() for _ in range(items)]
    found = []
    for _, count in models:
        left = 1 / (1 + math.exp(1.3 * (count - 5.5)))
        level = chance + (best - chance) * left
        steady = 0.93 if count else 1.0
        found.append(
            [
                _right(
                    (hard if numbers.random() < steady * left else numbers.random()), level, name
                )
                for hard in hardness
            ]
        )
    return found


def _right(hard: float, level: float, name: str) -> float:
    if name == "squad":
        return max(0.0, 1 - hard / (2 * level))
    return float(hard < level)


def _scores(
    models: Sequence[tuple[str, int]], task: str, metric: str, right: Sequence[Sequence[float]]
) -> list[Score]:
    return [
        Score(model=model, task=task, metric=metric, **_mean(answers))
        for (model, _), answers in zip(models, right, strict=True)
    ]


def _differences(
    models: Sequence[tuple[str, int]], task: Task, right: Sequence[Sequence[float]], question: str
) -> list[Difference]:
    first = right[0]
    found = []
    for (model, _), answers in zip(models[1:], right[1:], strict=True):
        paired = [after - before for before, after in zip(first, answers, strict=True)]
        whole = task.name != "squad"
        gained, lost = (paired.count(1.0), paired.count(-1.0)) if whole else (0, 0)
        base = sum(first) / len(first) - (task.chance or 0.0)
        mean = _mean(paired)
        changed = [place for place, each in enumerate(paired) if each]
        changed.sort(key=lambda place: paired[place])
        shown = [*changed[:4], *changed[-2:]] if whole and task.output else []
        found.append(
            Difference(
                model=model,
                task=task.name,
                difference=Estimate(**mean),
                p_value=mcnemar(gained, lost) if whole else normal(**mean),
                gained=gained,
                lost=lost,
                above_chance=None
                if task.chance is None or base <= 0
                else Estimate(value=1 + mean["value"] / base, stderr=mean["stderr"] / base),
                flips=tuple(
                    Flip(
                        item=item,
                        gained=paired[item] > 0,
                        question=f"{question} (item {item})",
                        right="mercury",
                        before="lead" if paired[item] > 0 else "mercury",
                        after="mercury" if paired[item] > 0 else "tin",
                    )
                    for item in dict.fromkeys(shown)
                ),
            )
        )
    return found


def _average(
    models: Sequence[tuple[str, int]],
    place: int,
    tasks: Sequence[Task],
    right: dict[str, list[list[float]]],
) -> Average:
    chief = [task for task in tasks if not task.group]
    means = [_mean(right[task.name][place]) for task in chief]
    value = math.fsum(each["value"] for each in means) / len(means)
    error = math.sqrt(math.fsum(each["stderr"] ** 2 for each in means)) / len(means)
    firsts = [sum(right[task.name][0]) / len(right[task.name][0]) for task in chief]
    before = math.fsum(firsts) / len(firsts)
    chance = math.fsum(task.chance or 0.0 for task in chief) / len(chief)
    difference = Estimate(value=value - before, stderr=0.7 * error) if place else None
    return Average(
        model=models[place][0],
        tasks=tuple(task.name for task in chief),
        value=Estimate(value=value, stderr=error),
        difference=difference,
        p_value=normal(difference.value, difference.stderr) if difference else None,
        above_chance=Estimate(value=(value - chance) / (before - chance), stderr=0.03)
        if place
        else None,
    )


def mcnemar(gained: int, lost: int) -> float:
    """Exact and two-sided: a fair coin for every item that changed."""
    total = gained + lost
    tail = sum(math.comb(total, few) for few in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**total)


def normal(value: float, stderr: float) -> float:
    """By the normal distribution, two-sided."""
    return math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr else 1.0


def _mean(values: Sequence[float]) -> dict[str, float]:
    mean = math.fsum(values) / len(values)
    spread = math.fsum((each - mean) ** 2 for each in values) / (len(values) - 1)
    return {"value": mean, "stderr": math.sqrt(spread / len(values))}
