"""Benchmarks for a model card: front matter that the hub reads, and a table that people read."""

import re
from collections import Counter
from collections.abc import Iterator

from depthcut.records import Estimate, Evaluation, ModelEvaluation, Score, Task, TaskResults
from depthcut.reporting.benchmarks.scores import (
    KINDS,
    PERCENT,
    items_words,
    judge,
    kind_of,
    scale_of,
    task_note,
)

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILES = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".yaml", ".arrow", ".gz", ".zst")


def model_cards(evaluation: Evaluation) -> dict[str, str]:
    """File name to content, a card for each model after the first; of one model its own.

    Each is a whole Markdown block: YAML front matter with the numbers as `model-index`, the form
    in which the hub shows them, and the same numbers as a table.
    """
    results = evaluation.tasks
    if results is None:
        return {}
    judged = evaluation.models[1:] or evaluation.models
    if len(judged) == 1:
        return {"model-card.md": model_card(evaluation, results, judged[0])}
    cards: dict[str, str] = {}
    for number, each in enumerate(judged, start=1):
        letters = re.sub(r"[^\w.-]+", "-", each.name).strip("-.") or str(number)
        name = f"model-card-{letters}.md"
        if name in cards:
            name = f"model-card-{letters}-{number}.md"
        cards[name] = model_card(evaluation, results, each)
    return cards


def model_card(evaluation: Evaluation, results: TaskResults, model: ModelEvaluation) -> str:
    """One model's numbers as front matter and as a table beside the first model's."""
    import yaml

    matter: str = yaml.safe_dump(
        {"model-index": [{"name": model.name, "results": model_index(results, model.name)}]},
        sort_keys=False,
        allow_unicode=True,
        width=100,
    )
    lines = ["---", matter.rstrip(), "---", "", "## Evaluation", ""]
    return "\n".join((*lines, *_table(evaluation, results, model), ""))


def model_index(results: TaskResults, model: str) -> list[dict[str, object]]:
    """Its results in the hub's form: one entry a task, in it one metric for each that is known.

    Values and errors are as lm-eval counts them: shares from 0 to 1.
    """
    shared = Counter(map(_dataset, results.tasks))
    found = []
    for task in results.tasks:
        scores = [each for each in results.scores if (each.model, each.task) == (model, task.name)]
        if scores:
            scores.sort(key=lambda each: each.metric != task.metric)
            found.append(_result(task, scores, alone=shared[_dataset(task)] == 1))
    return found


def _result(task: Task, scores: list[Score], *, alone: bool) -> dict[str, object]:
    shots = f"{task.shots}-shot"
    dataset: dict[str, object] = {"name": task.name, "type": _dataset(task)}
    if not alone:  # the hub's library takes results of one data set for one result
        dataset["config"] = task.name
    dataset["args"] = {
        "num_few_shot": task.shots,
        "questions": task.items,
        "questions_in_all": task.items_in_all,
    }
    return {
        "task": {"type": "text-generation", "name": f"{task.name} ({shots})"},
        "dataset": dataset,
        "metrics": [_metric(each) for each in scores],
    }


def _metric(score: Score) -> dict[str, object]:
    kind, _, answer_filter = score.metric.partition("/")
    found: dict[str, object] = {"type": kind, "name": score.metric, "value": round(score.value, 6)}
    arguments: dict[str, object] = {}
    if score.stderr is not None:
        arguments["stderr"] = round(score.stderr, 6)
    if answer_filter:
        arguments["filter"] = answer_filter
    return found | ({"args": arguments} if arguments else {})


def _dataset(task: Task) -> str:
    """The data set of the hub; the task's name where it came from a file."""
    hub = _HUB_NAME.fullmatch(task.source) and not task.source.endswith(_FILES)
    return task.source if hub else task.name


def _table(evaluation: Evaluation, results: TaskResults, model: ModelEvaluation) -> Iterator[str]:
    first = evaluation.models[0]
    beside = first is not model
    yield f"By {results.harness}, ± one standard error." + (
        f" Differences to {_cell(first.name)} are paired over the same questions." if beside else ""
    )
    yield ""
    heads = ["Task", "Metric", "Questions", _cell(model.name)]
    heads += [_cell(first.name), "Difference", ""] if beside else []
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---:" + "|---:" * (len(heads) - 3) + "|"
    for task in results.chief:
        cells = [_cell(task.name), _cell(task_note(task)), items_words(task)]
        cells.append(_score(results, task, model.name))
        if beside:
            cells.append(_score(results, task, first.name))
            cells += _difference(results, task, model.name)
        yield f"| {' | '.join(cells)} |"
    if average := results.average(model.name):
        cells = ["**average**", f"{len(average.tasks)} tasks", ""]
        cells.append(f"{PERCENT.shown(average.value)} %")
        reference = results.average(first.name)
        if beside and reference and average.difference:
            cells.append(f"{PERCENT.shown(reference.value)} %")
            cells.append(PERCENT.step_words(average.difference))
            cells.append(KINDS[judge(average.difference, average.p_value)])
        elif beside:
            cells += ["", "", ""]
        yield f"| {' | '.join(cells)} |"


def _score(results: TaskResults, task: Task, model: str) -> str:
    score = results.score(model, task)
    if score is None:
        return "–"
    scale = scale_of(results, task)
    shown = scale.shown(Estimate(value=score.value, stderr=score.stderr or 0.0))
    return f"{shown} {scale.unit}".rstrip()


def _difference(results: TaskResults, task: Task, model: str) -> list[str]:
    found = results.difference(model, task.name)
    if found is None:
        return ["–", ""]
    return [scale_of(results, task).step_words(found.difference), KINDS[kind_of(task, found)]]


def _cell(text: str) -> str:
    """Text that may hold what Markdown reads as a table or as HTML."""
    return re.sub(r"([\\|<>*_`\[\]])", r"\\\1", text)
