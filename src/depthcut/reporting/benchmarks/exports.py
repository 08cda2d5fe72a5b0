"""Benchmarks as files: every number as CSV, and a LaTeX table for a paper."""

import csv
import io
import re
from collections.abc import Iterator

from depthcut.records import Estimate, Evaluation, Score, Task, TaskResults
from depthcut.reporting.benchmarks.scores import (
    LEVEL,
    PERCENT,
    Kind,
    Scale,
    judge,
    kind_of,
    scale_of,
)

COLUMNS = (
    "model",
    "layers",
    "parameters",
    "task",
    "group",
    "metric",
    "chief",
    "shots",
    "items",
    "items_in_all",
    "chance",
    "higher_is_better",
    "value",
    "stderr",
    "difference",
    "difference_stderr",
    "p",
    "verdict",
    "gained",
    "lost",
    "above_chance",
    "above_chance_stderr",
)
_TEX_MARKS: dict[Kind | None, str] = {"same": r"^\dagger", "open": r"^\ddagger"}
Number = str | int | float | bool | None


def tasks_csv(evaluation: Evaluation, results: TaskResults) -> str:
    """A row for each model, task and metric, unrounded; then each model's average.

    The differences are those of the metric that stands for the task ("chief").
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in evaluation.models:
        facts = (each.name, each.model.layers, each.model.parameters)
        for task in results.tasks:
            for score in results.scores:
                if (score.model, score.task) == (each.name, task.name):
                    writer.writerow((*facts, *_score_row(results, task, score)))
        if row := _average_row(results, each.name):
            writer.writerow((*facts, *row))
    return text.getvalue()


def tasks_tex(evaluation: Evaluation, results: TaskResults) -> str:
    """A table for LaTeX with booktabs: models down, tasks across, the average last.

    Errors are small; a dagger marks what does not differ significantly from the first model,
    a double one a difference of unknown error.
    """
    tasks = results.chief
    averaged = bool(results.averages)
    scales = [scale_of(results, task) for task in tasks]
    heads = [
        _tex(f"{task.name} (%)" if scale.unit else task.name)
        for task, scale in zip(tasks, scales, strict=True)
    ]
    count = len(tasks) + averaged
    lines = [
        "% Needs \\usepackage{booktabs}. Errors: one standard error. Dagger: the difference to the",
        f"% first model, paired over the same questions, is not significant at {LEVEL:.0%}; double",
        "% dagger: its error is unknown.",
        *(_comment(f"{task.name}: {task.metric}, {task.shots}-shot") for task in tasks),
        _comment(f"By {results.harness}."),
        rf"\begin{{tabular}}{{l{'r' * count}}}",
        r"\toprule",
        " & ".join(("Model", *heads, *([_tex("Average (%)")] if averaged else []))) + r" \\",
        r"\midrule",
    ]
    for each in evaluation.models:
        cells = [
            _tex_score(results, each.name, task, scale)
            for task, scale in zip(tasks, scales, strict=True)
        ]
        if averaged:
            cells.append(_tex_average(results, each.name))
        lines.append(" & ".join((_tex(each.name), *cells)) + r" \\")
    return "\n".join((*lines, r"\bottomrule", r"\end{tabular}", ""))


def _score_row(results: TaskResults, task: Task, score: Score) -> Iterator[Number]:
    chief = score.metric == task.metric
    yield from (task.name, task.group, score.metric, chief, task.shots, task.items)
    yield from (task.items_in_all, task.chance if chief else None)
    yield from (task.higher_is_better if chief else None, score.value, score.stderr)
    found = results.difference(score.model, task.name) if chief else None
    if found is None:
        yield from (None,) * 8
        return
    yield from (found.difference.value, found.difference.stderr, found.p_value)
    yield from (kind_of(task, found), found.gained, found.lost, *_pair(found.above_chance))


def _average_row(results: TaskResults, model: str) -> tuple[Number, ...]:
    average = results.average(model)
    if average is None:
        return ()
    verdict = judge(average.difference, average.p_value) if average.difference else None
    return (
        "average",
        "",
        f"{len(average.tasks)} tasks",
        True,
        *(None,) * 4,
        True,
        average.value.value,
        average.value.stderr,
        *_pair(average.difference),
        average.p_value,
        verdict,
        None,
        None,
        *_pair(average.above_chance),
    )


def _pair(found: Estimate | None) -> tuple[float | None, float | None]:
    return (found.value, found.stderr) if found else (None, None)


def _tex_score(results: TaskResults, model: str, task: Task, scale: Scale) -> str:
    score = results.score(model, task)
    if score is None:
        return "--"
    found = results.difference(model, task.name)
    shown = scale.shown(Estimate(value=score.value, stderr=score.stderr or 0.0))
    return _tex_number(shown, kind_of(task, found) if found else None)


def _tex_average(results: TaskResults, model: str) -> str:
    average = results.average(model)
    if average is None:
        return "--"
    kind = judge(average.difference, average.p_value) if average.difference else None
    return _tex_number(PERCENT.shown(average.value), kind)


def _tex_number(shown: str, kind: Kind | None) -> str:
    """A number, its error made small, marked by what its difference allows to say."""
    value, _, error = shown.replace("−", "-").replace(",", "{,}").partition(" ± ")
    small = rf"{{\scriptsize\,$\pm$\,{error}}}" if error else ""
    return f"${value}{_TEX_MARKS.get(kind, '')}${small}"


def _comment(text: str) -> str:
    return f"% {' '.join(text.split())}"


def _tex(text: str) -> str:
    named: dict[str, str] = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
                             "^": r"\textasciicircum{}"}  # fmt: skip
    return re.sub(
        r"[\\~^&%$#_{}]", lambda found: named.get(found[0], rf"\{found[0]}"), " ".join(text.split())
    )
