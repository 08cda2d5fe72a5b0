"""What lm-eval says of a run, as answers: the same numbers, item by item."""

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy
from lm_eval.api.metrics import bits_per_byte, weighted_perplexity

from depthcut.errors import SettingsError
from depthcut.evaluation import pairing
from depthcut.evaluation.benchmarks.answers import Answers, Item, Metric
from depthcut.evaluation.benchmarks.asked import Asked
from depthcut.records import Estimate, Task

_QUESTION = 1200
"""Characters of a question and of an answer that are kept, the last and the first ones."""

_RIGHT_CHOICE = ("acc_norm", "acc", "acc_bytes", "acc_mutual_info")
"""Metrics by which guessing gets one choice of all right."""

_CHIEF = ("acc_norm", "acc", "exact_match", "pass@1", "pass_at_1", "em", "f1", "bits_per_byte")
"""Metrics that stand for a task, the first that it has."""

_NO_FILTER = "none"

_SAME = 1e-9
"""Two means of the same numbers, added in another order."""

Results = Mapping[str, Any]


def answers_in(results: Results, tasks: Mapping[str, Any], asked: Asked) -> tuple[Answers, ...]:
    """Groups and tasks of a run, groups before what counts in them.

    Args:
        results: What `lm_eval.simple_evaluate` returns.
        tasks: What `TaskManager.load` returns.
        asked: What of --tasks it was.
    """
    group_of = _group_of(results, tasks["groups"])
    leaves = {
        name: _task_answers(name, results, task, asked, group_of.get(name, ""))
        for name, task in tasks["tasks"].items()
    }
    found: list[Answers] = []
    groups = tasks["groups"]
    for group in groups:
        members = [leaves[name] for name in leaves if group_of.get(name) == group]
        if members:
            found += [_group_answers(groups[group], results, members, asked), *members]
    return (*found, *(leaves[name] for name in leaves if name not in group_of))


def _group_of(results: Results, groups: Mapping[str, Any]) -> dict[str, str]:
    """For each task the outermost group that lm-eval counts one number for."""
    found: dict[str, str] = {}
    for name, group in groups.items():
        if any(_is_value(key) for key in results.get("groups", {}).get(name, {})):
            for task in group.get_all_tasks():
                found.setdefault(task.task_name, name)
    return found


def _is_value(key: str) -> bool:
    return "," in key and "_stderr" not in key


def _metrics(
    values: Mapping[str, Any], parts: Sequence[Sequence[Item]], single: bool
) -> tuple[Metric, ...]:
    """Values as lm-eval counts them; errors from the items (its bootstrap would take minutes)."""
    found = []
    for key, value in values.items():
        if _is_value(key) and (number := _number(value)) is not None:
            metric, _, filtered = key.partition(",")
            name = _name(metric, filtered, single)
            found.append(Metric(name=name, value=number, stderr=_stderr(name, number, parts)))
    return tuple(found)


def _stderr(name: str, value: float, parts: Sequence[Sequence[Item]]) -> float | None:
    """Of a mean over items, words, bytes or tasks, or of exp(such a mean); None: it is none."""
    for mean in _means(name, parts):
        if math.isclose(mean.value, value, rel_tol=_SAME, abs_tol=_SAME):
            return mean.stderr
        for sign in (1, -1):  # the delta method; a perplexity is that of minus the log-likelihood
            if math.isclose(math.exp(min(sign * mean.value, 700.0)), value, rel_tol=_SAME):
                return value * mean.stderr
    return None


def _means(name: str, parts: Sequence[Sequence[Item]]) -> Iterator[Estimate]:
    items = [item for part in parts for item in part]
    if not all(name in item.scores for item in items):
        return
    scores = [[item.scores[name] for item in part] for part in parts]
    weights = [item.weights[name] for item in items if name in item.weights]
    with contextlib.suppress(SettingsError):  # too few to know the error
        if weights:
            flat = [score for part in scores for score in part]
            yield pairing.weighted_paired([0.0] * len(flat), flat, weights)
        else:
            yield pairing.pooled_estimate(scores)
            yield pairing.average([pairing.mean_estimate(part) for part in scores])


def _number(value: object) -> float | None:
    """A score as a number; None: it is none, or no finite one, which says nothing of a mean."""
    if not isinstance(value, bool | int | float | numpy.integer | numpy.floating | numpy.bool_):
        return None
    return float(value) if math.isfinite(value) else None


def _name(metric: str, filtered: str, single: bool) -> str:
    return metric if single or filtered == _NO_FILTER else f"{metric}/{filtered}"


def _filters(values: Mapping[str, Any]) -> set[str]:
    return {key.partition(",")[2] for key in values if _is_value(key)}


def _chief(values: Mapping[str, Any], single: bool) -> str:
    parted = (key.partition(",") for key in values if _is_value(key))
    names = [_name(metric, filtered, single) for metric, _, filtered in parted]
    for wanted in _CHIEF:
        for name in names:
            if name.partition("/")[0] == wanted:
                return name
    return names[0] if names else ""


def _task_answers(name: str, results: Results, task: Any, asked: Asked, group: str) -> Answers:
    values, config = results["results"][name], results["configs"][name]
    single = len(_filters(values)) == 1
    samples, chief = results["samples"].get(name, []), _chief(values, single)
    items = _items(samples, task, chief, single=single)
    metrics = _metrics(values, [items], single)
    output = str(config.get("output_type", ""))
    higher = results["higher_is_better"].get(name, {}).get(chief.partition("/")[0])
    counted = results["n-samples"][name]
    return Answers(
        task=Task(
            name=name,
            group=group,
            asked=asked.words,
            source=_source(config),
            version=str(results["versions"].get(name, "")),
            output=output,
            shots=int(results["n-shot"].get(name) or 0),
            items=int(counted["effective"]),
            items_in_all=int(counted["original"]),
            metric=chief,
            higher_is_better=higher is not False,
            chance=_chance(output, chief, samples, task, higher=higher is not False),
        ),
        metrics=metrics,
        items=items,
    )


def _source(config: Mapping[str, Any]) -> str:
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if files is not None and config.get("dataset_path") in ("json", "csv", "parquet", "text"):
        return ", ".join(files.values()) if isinstance(files, dict) else str(files)
    parts = (config.get("dataset_path"), config.get("dataset_name"))
    return " ".join(str(each) for each in parts if each)


def _chance(
    output: str, chief: str, samples: Sequence[Any], task: Any, *, higher: bool
) -> float | None:
    metric = chief.partition("/")[0]
    if output == "multiple_choice" and metric in _RIGHT_CHOICE and samples:
        return sum(1 / len(_asked(each, task)) for each in samples) / len(samples)
    texts = output in ("generate_until", "loglikelihood")
    return 0.0 if texts and higher and metric in _CHIEF else None


def _group_answers(
    group: Any, results: Results, members: Sequence[Answers], asked: Asked
) -> Answers:
    name, values = group.name, results["groups"][group.name]
    every = (_filters(results["results"][each.task.name]) for each in members)
    single = len(_filters(values).union(*every)) == 1  # as its tasks name their metrics
    metrics = _metrics(values, [each.items for each in members], single)
    tasks = [each.task for each in members]
    chief = _chief(values, single)
    return Answers(
        task=Task(
            name=name,
            asked=asked.words,
            version=str(results["versions"].get(name, "")),
            shots=max(each.shots for each in tasks),
            items=sum(each.items for each in tasks),
            items_in_all=sum(each.items_in_all for each in tasks),
            metric=chief,
            higher_is_better=all(each.higher_is_better for each in tasks),
            chance=_group_chance(group, chief, tasks),
        ),
        metrics=metrics,
        items=(),
    )


def _group_chance(group: Any, chief: str, tasks: Sequence[Task]) -> float | None:
    """The mean over its tasks, weighed as the score is."""
    metric = chief.partition("/")[0]
    by_size = all(
        each.weight_by_size for each in group.aggregate_metric_list if each.metric == metric
    )
    weights = [each.items if by_size else 1 for each in tasks]
    known = [each.chance for each in tasks if each.chance is not None]
    if len(known) < len(tasks) or metric not in (*_CHIEF, *_RIGHT_CHOICE):
        return None
    pooled = (chance * weight for chance, weight in zip(known, weights, strict=True))
    return sum(pooled) / sum(weights)


def _items(
    samples: Sequence[Mapping[str, Any]], task: Any, chief: str, *, single: bool
) -> tuple[Item, ...]:
    by_number: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for sample in samples:
        by_number[int(sample["doc_id"])].append(sample)
    return tuple(
        _item(by_number[number], task, chief, single=single) for number in sorted(by_number)
    )


def _item(samples: Sequence[Mapping[str, Any]], task: Any, chief: str, *, single: bool) -> Item:
    scores: dict[str, float] = {}
    weights: dict[str, float] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name, value = _name(metric, sample["filter"], single), sample[metric]
            if (number := _number(value)) is not None:
                scores[name] = number
            elif _is_weighted(metric, value, task):
                loglikelihood, weight = map(float, value)
                in_bits = math.log(2) if metric == "bits_per_byte" else 1.0
                scores[name] = -loglikelihood / (weight * in_bits) if weight else 0.0
                weights[name] = weight
    first = samples[0]
    right, answer = _right_and_answer(first, task, chief)
    return Item(
        number=int(first["doc_id"]),
        question=_question(first, task),
        right=right[:_QUESTION],
        answer=answer[:_QUESTION],
        scores=scores,
        weights=weights,
    )


def _is_weighted(metric: str, value: Any, task: Any) -> bool:
    """Log-likelihood and how many words or bytes it is of, as lm-eval's rolling tasks say it.

    By what the metric does with it: f1 takes pairs of right and given.
    """
    return task.aggregation().get(metric) in (weighted_perplexity, bits_per_byte) and all(
        _number(each) is not None for each in value
    )


def _question(sample: Mapping[str, Any], task: Any) -> str:
    """The end of what the model was shown: what stands behind the examples."""
    shown = str(sample["arguments"][0][0])
    delimiter = str(getattr(task.config, "fewshot_delimiter", "") or "")
    shots = getattr(task.config, "num_fewshot", None) or 0
    if shots and delimiter and shown.count(delimiter) >= shots:
        shown = shown.split(delimiter, shots)[-1]
    return shown.strip()[-_QUESTION:]


def _right_and_answer(sample: Mapping[str, Any], task: Any, chief: str) -> tuple[str, str]:
    arguments, given = _asked(sample, task), sample["filtered_resps"]
    if task.OUTPUT_TYPE == "multiple_choice":
        choices = _choices(arguments)
        likelihoods = [_log_likelihood(each) for each in given[: len(choices)]]
        if chief == "acc_norm":  # by the length of the choices, as lm-eval takes it
            written = task.doc_to_choice(sample["doc"])
            likelihoods = [
                each / (len(text) or 1) for each, text in zip(likelihoods, written, strict=True)
            ]
        likeliest = likelihoods.index(max(likelihoods))
        return _right_choice(sample, task, choices), choices[likeliest]
    if task.OUTPUT_TYPE == "loglikelihood":
        right = str(arguments[0][1]).strip()
        return right, right if given[0][1] else "something else"
    if task.OUTPUT_TYPE == "generate_until":
        return str(sample["target"]), str(sample["resps"][0][0]).strip()
    return "", ""


def _asked(sample: Mapping[str, Any], task: Any) -> Sequence[Any]:
    """The requests of a question, without those that ask for its choices alone."""
    arguments: Sequence[Any] = sample["arguments"]
    doubled = "acc_mutual_info" in getattr(task, "_metric_fn_list", ())
    return arguments[: len(arguments) // 2] if doubled else arguments


def _log_likelihood(given: Any) -> float:
    return float(given[0] if isinstance(given, tuple | list) else given)


def _choices(arguments: Sequence[Sequence[str]]) -> list[str]:
    """What the requests of a question differ in: its continuations, or what stands before."""
    continuations = [str(each[1]).strip() for each in arguments]
    if len(set(continuations)) > 1 or len(arguments) == 1:
        return continuations
    return [_differing(str(each[0]), [str(other[0]) for other in arguments]) for each in arguments]


def _differing(text: str, others: Sequence[str]) -> str:
    """A text without the words that all of them begin with."""
    words = [each.split() for each in others]
    common = 0
    while all(len(each) > common for each in words) and all(
        one[common] == other[common] for one, other in pairwise(words)
    ):
        common += 1
    return " ".join(text.split()[common:])


def _right_choice(sample: Mapping[str, Any], task: Any, choices: Sequence[str]) -> str:
    target = sample["target"]
    contexts = {str(each[0]) for each in _asked(sample, task)}
    if len(contexts) > 1:  # the choices stand before one and the same ending
        target = task.doc_to_text(sample["doc"])
    several = target if isinstance(target, list) else [target]
    return " / ".join(
        choices[each] if isinstance(each, int) and 0 <= each < len(choices) else str(each).strip()
        for each in several
    )
