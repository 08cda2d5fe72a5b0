"""Tasks that few people write: what lm-eval makes of them, and what is kept of that."""

import json
import math
from pathlib import Path

import msgspec
import pytest

from depthcut.errors import SettingsError, SourceError
from depthcut.evaluation.benchmarks.answers import Answers, Unit
from depthcut.evaluation.benchmarks.asked import Asked
from depthcut.evaluation.benchmarks.data import local_files
from depthcut.evaluation.benchmarks.results import task_results
from depthcut.evaluation.candidates import Candidate
from depthcut.model.loading import LoadedModel, load
from depthcut.settings import EvaluateSettings, LoadSettings
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'depthcut[eval]'")

_MEAN = "aggregation: mean, higher_is_better: true"
_CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{right}}"
doc_to_choice: "{{choices}}"
"""
_TEXT = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[right]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
"""
_TASKS = {
    "mutual": f"""{_CHOICE}
metric_list:
  - {{metric: acc, {_MEAN}}}
  - {{metric: acc_norm, {_MEAN}}}
  - {{metric: acc_mutual_info, {_MEAN}}}
""",
    "pairs": f"""{_CHOICE}
process_results: !function odd.pairs
metric_list:
  - {{metric: acc, {_MEAN}}}
  - {{metric: f1, aggregation: f1, higher_is_better: true}}
""",
    "nothing": f"""{_CHOICE}
process_results: !function odd.nothing
metric_list: [{{metric: acc, {_MEAN}}}, {{metric: f1, {_MEAN}}}]
""",
    "words": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}]
""",
    **{
        name: f"""{_TEXT}
process_results: !function odd.length
metric_list: [{{metric: acc, {_MEAN}}}]
filter_list:
  - {{name: one, filter: [{{function: take_first}}]}}
  - {{name: two, filter: [{{function: lowercase}}, {{function: take_first}}]}}
{"test_split: few" if name == "twice_b" else ""}
"""
        for name in ("twice_a", "twice_b")
    },
    **{
        name: f"""{_CHOICE}
metric_list: [{{metric: acc, {_MEAN}}}]
{"test_split: few" if name == "flat_b" else ""}
"""
        for name in ("flat_a", "flat_b")
    },
}
_TASKS["shown"] = f"{_TASKS['flat_a']}fewshot_split: few\n"
_TASKS["among"] = f"{_TASKS['flat_a']}fewshot_split: test\n"
_TASKS["drawing"] = f"{_TASKS['flat_a']}custom_dataset: !function odd.drawn\n"
_TASKS["long"] = _TASKS["twice_a"].replace("max_gen_toks: 4", "max_gen_toks: 600")
_TASKS["lacking"] = f"{_TASKS['flat_a']}process_docs: !function lacking.docs\n"
_GROUPS = {
    "twice": """
task: [twice_a, twice_b]
aggregate_metric_list: [{metric: acc, weight_by_size: true, filter_list: two}]
""",
    "flat": """
task: [flat_a, flat_b]
aggregate_metric_list: [{metric: acc, weight_by_size: false}]
""",
}
_ODD = """
import random

import datasets
import numpy

def drawn(**options):
    items = [{"question": str(random.random()), "choices": ["a", "b"], "right": 0}] * 3
    return {"test": datasets.Dataset.from_list(items)}

def pairs(doc, results):
    said = max(range(len(results)), key=lambda place: results[place][0])
    return {"acc": numpy.bool_(said == doc["right"]), "f1": (doc["right"] > 0, 0)}

def nothing(doc, results):
    return {"acc": float("nan"), "f1": float("inf")}

def length(doc, results):
    return {"acc": float(len(results[0]) % 2)}
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EvaluateSettings:
    folder = tmp_path_factory.mktemp("tasks")
    for name, items in (("items", 8), ("few", 3)):
        lines = (json.dumps(_item(number)) + "\n" for number in range(items))
        (folder / f"{name}.jsonl").write_text("".join(lines))
    files = f'{{test: "{folder / "items.jsonl"}", few: "{folder / "few.jsonl"}"}}'
    head = f"dataset_path: json\ndataset_kwargs: {{data_files: {files}}}\n"
    for name, kind in _TASKS.items():
        split = "" if "test_split" in kind else "test_split: test\n"
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}{split}{kind}")
    for name, kind in _GROUPS.items():
        (folder / f"{name}.yaml").write_text(f"group: {name}\n{kind}")
    (folder / "odd.py").write_text(_ODD)
    (folder / "lacking.py").write_text("import nobody_has_this\n")
    return EvaluateSettings(include=(str(folder),), batch_size=4)


def _item(number: int) -> dict[str, object]:
    return {
        "question": f"Number {number}" + " and so on" * (number % 3),
        "choices": ["red", "dark green", "blue", "a yellow one"][: 3 + number % 2],
        "right": number % 3,
    }


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_tiny(build_tiny("llama"), tmp_path_factory.mktemp("model"))
    tiny_tokenizer(folder)
    return load(folder, LoadSettings())


def answer(name: str, loaded: LoadedModel, settings: EvaluateSettings, parts: Path) -> Unit:
    from depthcut.evaluation.benchmarks.harness import Harness

    candidate = Candidate("model", loaded.facts, lambda: loaded)
    return Harness(settings).answer(Asked(name), candidate, parts=parts / "parts")


def the_only(unit: Unit) -> Answers:
    (found,) = unit.answers
    return found


def test_more_examples_than_there_are_are_refused(settings: EvaluateSettings) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    Harness(settings).load(Asked("shown", 3))
    with pytest.raises(SettingsError, match="shown has 3 examples: ask for shown:3 or fewer"):
        Harness(settings).load(Asked("shown", 4))
    with pytest.raises(SettingsError, match="among has 7 examples: ask for among:7 or fewer"):
        Harness(settings).load(Asked("among", 8))


def test_what_a_model_or_a_machine_lacks_is_told(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    with pytest.raises(SettingsError, match=r"long cannot be asked of this model: .*\(600\)"):
        answer("long", loaded, settings, tmp_path)
    with pytest.raises(SourceError, match=r"lacking needs a package .* 'nobody_has_this'; install"):
        Harness(settings).load(Asked("lacking"))


def test_what_a_task_draws_while_it_is_loaded_is_drawn_alike_each_time(
    settings: EvaluateSettings,
) -> None:
    from depthcut.evaluation.benchmarks.harness import Harness

    both = [Harness(settings).load(Asked("drawing"))["tasks"]["drawing"] for _ in range(2)]
    assert both[0].dataset["test"]["question"] == both[1].dataset["test"]["question"]


def test_requests_for_the_choices_alone_are_no_choices(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    mutual = the_only(answer("mutual", loaded, settings, tmp_path))
    assert mutual.task.chance == pytest.approx((1 / 3 + 1 / 4) / 2)
    for number, item in enumerate(mutual.items):
        assert item.right == ("red", "dark green", "blue")[number % 3]
        assert (item.answer == item.right) == (item.scores["acc_norm"] == 1.0)


def test_pairs_of_right_and_given_are_no_words_and_numpys_numbers_are_scores(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    pairs = the_only(answer("pairs", loaded, settings, tmp_path))
    right = [float(item.answer == item.right) for item in pairs.items]
    assert [item.scores for item in pairs.items] == [{"acc": each} for each in right]
    assert not any(item.weights for item in pairs.items)
    assert {each.name: each.stderr is None for each in pairs.metrics} == {"acc": False, "f1": True}


def test_what_is_no_finite_number_is_left_out_and_the_rest_can_be_kept(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    unit = answer("nothing", loaded, settings, tmp_path)
    assert not the_only(unit).metrics
    assert msgspec.json.decode(msgspec.json.encode(unit), type=Unit) == unit
    assert not task_results({"one": [unit], "two": [unit]}).differences


def test_no_difference_is_shown_of_a_perplexity_in_another_unit_than_its_score(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    unit = answer("words", loaded, settings, tmp_path)
    (metric,) = the_only(unit).metrics
    assert metric.name == "word_perplexity"
    assert metric.stderr is not None
    assert not task_results({"one": [unit], "two": [unit]}).differences


def test_a_group_names_its_metrics_as_its_tasks_do(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    unit = answer("twice", loaded, settings, tmp_path)
    group, *tasks = unit.answers
    assert [each.name for each in group.metrics] == ["acc/two"]
    assert {each.name for task in tasks for each in task.metrics} == {"acc/one", "acc/two"}
    assert group.metrics[0].stderr is not None
    found = task_results({"one": [unit], "two": [unit]})
    assert found.difference("two", "twice") is not None


def test_a_group_that_weighs_its_tasks_alike_has_the_error_of_their_mean(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    group, *tasks = answer("flat", loaded, settings, tmp_path).answers
    (mean,) = group.metrics
    values = [task.metrics[0].value for task in tasks]
    errors = [task.metrics[0].stderr or 0.0 for task in tasks]
    assert mean.value == pytest.approx(sum(values) / 2)
    assert group.task.chance == pytest.approx(sum(task.task.chance or 0 for task in tasks) / 2)
    assert values[0] != values[1]
    assert mean.stderr == pytest.approx(math.hypot(*errors) / 2)


def test_a_task_that_comes_by_two_names_is_refused(
    loaded: LoadedModel, settings: EvaluateSettings, tmp_path: Path
) -> None:
    units = [answer(name, loaded, settings, tmp_path) for name in ("flat", "flat_a")]
    with pytest.raises(SettingsError, match=r"asks for flat_a twice \(in flat and flat_a\)"):
        task_results({"one": units})


def test_a_pattern_of_files_stands_for_those_that_match(tmp_path: Path) -> None:
    for name in ("one.jsonl", "two.jsonl", "other.txt"):
        (tmp_path / name).write_text("{}")
    config = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "*.jsonl"}}}
    found = [Path(each).name for each in local_files(config, str(tmp_path))]
    assert found == ["one.jsonl", "two.jsonl"]
