"""Each task file asks the same as lm-eval's own task of its name, of invented documents."""

# ruff: noqa: E402 (what comes with lm-eval is imported after it is known to be there)

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

lm_eval_tasks = pytest.importorskip(
    "lm_eval.tasks", reason="lm-eval is not installed: pip install 'depthcut[eval]'"
)

import datasets
import evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from depthcut.evaluation.benchmarks import task_files

HERE = Path(task_files.__file__).parent
HUB = HERE.with_name("hub_task_files")
THEIRS = Path(lm_eval_tasks.__file__).parent

Document = dict[str, Any]

LETTERS = {"text": ["moss", "a rock", "rain", "[no]", "two words"], "label": list("ABCDE")}
ARC = {
    "id": "X_1",
    "question": {
        "stem": "What grows?",
        "choices": [{"text": "a rock", "label": "1"}, {"text": "moss", "label": "2"}],
    },
    "answerKey": "2",
}
ARC_ON_HUB = {
    "id": "X_1",
    "question": "What grows?",
    "choices": {"text": ["a rock", "moss"], "label": ["1", "2"]},
    "answerKey": "2",
}
COPA = {"premise": "It rained.", "choice1": "He ran.", "choice2": "It shone.", "label": 1, "idx": 0}
WIKI = {"activity_label": "Shoes", "endings": ["[step] Lace.", "Run.", "Sit.", "Eat."], "label": 2}
FILM = {"activity_label": "Ice", "endings": ["skates.", "falls.", "eats.", "sings."], "label": 0}
PAGE = " \n = Moss = \n \n Moss , a plant , is 3 @.@ 5 cm \n = = Uses = = \n None . \n"
NEXT = " = Rock ( band ) = \n \n They play . \n"
HUMANEVAL = {
    "task_id": "X/0",
    "prompt": 'def add(a, b):\n    """Sum."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n  return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0", "assert add(1, 1) == 2"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
MMLU = {"question": " What? ", "choices": ["1", "2", "3", "4"], "answer": 1}

# Task: lm-eval's file of it, documents in the fields of the files here and of the hub.
CASES: dict[str, tuple[str, list[Document], list[Document]]] = {
    "arc_easy": ("arc/arc_easy", [ARC], [ARC_ON_HUB]),
    "arc_challenge": ("arc/arc_challenge", [ARC], [ARC_ON_HUB]),
    "hellaswag": (
        "hellaswag/hellaswag",
        [
            {**FILM, "ctx": 'A man (tall) waits. "Go." then the Man'},
            {**FILM, "ctx": "A man is on ice. he"},
            {**WIKI, "ctx": "[header] How to tie [title] Begin. [step] Sit on e.g. A Chair"},
        ],
        [
            {**FILM, "ctx_a": 'A man (tall) waits. "Go."', "ctx_b": "then the Man", "label": "0"},
            {**FILM, "ctx_a": "A man is on ice.", "ctx_b": "he", "label": "0"},
            {
                **WIKI,
                "ctx_a": "[header] How to tie [title] Begin. [step] Sit on e.g. A Chair",
                "ctx_b": "",
                "label": "2",
            },
        ],
    ),
    "boolq": (
        "super_glue/boolq/default",
        [{"question": "is moss green", "title": "Moss", "passage": "It is.", "answer": True}],
        [{"question": "is moss green", "passage": "Moss -- It is.", "idx": 0, "label": 1}],
    ),
    "piqa": ("piqa/piqa", [{"goal": "Dry", "sol1": "Sun.", "sol2": "Rain.", "label": 0}], []),
    "winogrande": (
        "winogrande/default",
        [{"sentence": "Ann met Eve and _ ran.", "option1": "Ann", "option2": "Eve", "answer": "2"}],
        [],
    ),
    "lambada_openai": ("lambada/lambada_openai", [{"text": 'He said: "The end of it'}], []),
    "openbookqa": (
        "openbookqa/openbookqa",
        [{"id": "1", "question_stem": "It grows:", "choices": LETTERS, "answerKey": " A"}],
        [],
    ),
    "copa": (
        "super_glue/copa/default",
        [{**COPA, "question": "cause"}, {**COPA, "question": "effect", "label": 0}],
        [],
    ),
    "commonsense_qa": (
        "commonsense_qa/default",
        [{"question": " Where is moss? ", "choices": LETTERS, "answerKey": "C"}],
        [],
    ),
    "sciq": (
        "sciq/sciq",
        [
            {
                "question": "What is moss?",
                "distractor1": "A rock",
                "distractor2": "Rain",
                "distractor3": "Air",
                "correct_answer": "A plant",
                "support": " It grows.",
            }
        ],
        [],
    ),
    "social_iqa": (
        "siqa/siqa",
        [
            {
                "context": "Ann ran.",
                "question": "Why?",
                "answerA": "Fun",
                "answerB": "Fear",
                "answerC": "Rain",
                "label": "3",
            }
        ],
        [],
    ),
    "gsm8k": ("gsm8k/gsm8k", [{"question": "1 + 1?", "answer": "<<1+1=2>>2\n#### 2"}] * 7, []),
    "humaneval": ("humaneval/humaneval", [HUMANEVAL], []),
    "mbpp": ("mbpp/mbpp", [MBPP], []),
    "xcopa_it": ("xcopa/default_it", [{**COPA, "question": "cause"}], []),
    "xcopa_id": ("xcopa/default_id", [{**COPA, "question": "effect"}], []),
    "xcopa_zh": ("xcopa/default_zh", [{**COPA, "question": "cause"}], []),
    "wikitext": (
        "wikitext/wikitext",
        [{"text": line} for line in (PAGE + NEXT).split("\n")],
        [{"page": PAGE.removeprefix(" \n").removesuffix("\n")}, {"page": NEXT}],
    ),
    "c4": (
        "c4/c4",
        [{"prefix": "Moss ( green ) is ap", "gold_completion": "plied 's thing ."}],
        [{"text": "Moss ( green ) is applied 's thing .", "timestamp": "", "url": ""}],
    ),
    "mmlu_us_foreign_policy": (
        "mmlu/default/mmlu_us_foreign_policy",
        [{**MMLU, "subject": "anatomy"}, {**MMLU, "subject": "us_foreign_policy", "answer": 3}],
        [{**MMLU, "subject": "us_foreign_policy", "answer": 3}],
    ),
}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, list[Document]], ConfigurableTask]:
    """Builds the task of a file on documents in memory: every part of it is made of them."""

    class CodeEval:
        """The metric of the hub, which lm-eval's tasks load when they are."""

        def compute(self, **_: object) -> list[dict[str, float]]:
            return [{"pass@1": 0.0}]

    monkeypatch.setattr(evaluate, "load", lambda _: CodeEval())

    def build(path: Path, documents: list[Document]) -> ConfigurableTask:
        config = load_yaml(path)
        names = ("training_split", "validation_split", "test_split", "fewshot_split")
        parts = {config[name] for name in names if config.get(name)}
        data = {part: datasets.Dataset.from_list(documents) for part in parts}
        monkeypatch.setattr(
            ConfigurableTask, "download", lambda self, *_: setattr(self, "dataset", data)
        )
        for name in ("tag", "group"):
            config.pop(name, None)
        return ConfigurableTask(config=config)

    return build


def requests_of(task: ConfigurableTask, shots: int) -> Iterator[tuple[object, ...]]:
    """All that a task asks a model, and what is right."""
    for document in task.eval_docs:
        context = task.fewshot_context(document, shots)
        asked = task.construct_requests(document, context, metadata=("", 0, 1))
        instances = asked if isinstance(asked, list) else [asked]
        target = task.doc_to_target(document)
        choices = task.doc_to_choice(document) if task.config.doc_to_choice else None
        right = int(target) if isinstance(target, str) and target.isdigit() else target
        yield ([each.arguments for each in instances], right, choices)


def own_file(name: str) -> Path:
    return HERE / ("mmlu" if name.startswith("mmlu") else "") / f"{name}.yaml"


@pytest.mark.parametrize("name", CASES)
def test_a_task_asks_the_same_as_that_of_lm_eval(
    name: str, built: Callable[[Path, list[Document]], ConfigurableTask]
) -> None:
    path, here, on_hub = CASES[name]
    theirs = built(THEIRS / f"{path}.yaml", on_hub or here)
    ours = built(own_file(name), shots_of(theirs) + here)
    shots = ours.config.num_fewshot or 0
    expected, found = list(requests_of(theirs, shots)), list(requests_of(ours, shots))
    assert found == expected
    assert len(found) == len(on_hub or here)
    if name.startswith("mmlu"):
        assert list(requests_of(ours, 1)) == list(requests_of(theirs, 1))


@pytest.mark.parametrize("name", CASES)
def test_a_task_is_scored_as_that_of_lm_eval(
    name: str, built: Callable[[Path, list[Document]], ConfigurableTask]
) -> None:
    path, here, on_hub = CASES[name]
    theirs = built(THEIRS / f"{path}.yaml", on_hub or here)
    ours = built(own_file(name), shots_of(theirs) + here)
    for task in (ours, theirs):
        task.config.metadata = {"version": task.VERSION}
    for what in ("_metric_fn_kwargs", "_aggregation_list", "_higher_is_better", "VERSION"):
        assert getattr(ours, what) == getattr(theirs, what), what
    for what in (
        *("task", "output_type", "generation_kwargs", "repeats", "num_fewshot", "unsafe_code"),
        *("target_delimiter", "fewshot_delimiter", "task_alias"),
    ):
        assert getattr(ours.config, what) == getattr(theirs.config, what), what
    assert ours.config.fewshot_config.sampler == theirs.config.fewshot_config.sampler
    assert [each.name for each in ours._filters] == [each.name for each in theirs._filters]
    if name == "gsm8k":
        assert ours.config.filter_list == theirs.config.filter_list


def shots_of(task: ConfigurableTask) -> list[Document]:
    """The examples that a task brings itself, as they are in a file of all of its data."""
    samples = task.config.fewshot_config.samples
    own = samples() if callable(samples) else samples or []
    return [{name: each[name] for name in each if name != "is_fewshot"} for each in own]


def test_every_task_file_is_held_against_lm_eval() -> None:
    names = {path.stem for path in HERE.glob("*.yaml")}
    assert names == {name for name in CASES if not name.startswith("mmlu")}


def test_mmlu_has_the_subjects_and_groups_of_lm_eval() -> None:
    ours, theirs = (
        {path.stem: load_yaml(path) for path in sorted(folder.glob("*mmlu*.yaml"))}
        for folder in (HERE / "mmlu", THEIRS / "mmlu" / "default")
    )
    assert list(ours) == list(theirs)
    assert sum(name.startswith("mmlu_") for name in ours) == 57
    for name, config in ours.items():
        if name.startswith("_"):
            assert config == theirs[name]
        else:
            same = ("task", "task_alias", "tag", "doc_to_text", "doc_to_choice", "doc_to_target")
            assert [config[key] for key in same] == [theirs[name][key] for key in same]
            subject = theirs[name]["dataset_name"]
            rows = datasets.Dataset.from_list([{"subject": subject}, {"subject": "no"}])
            assert config["process_docs"](rows)["subject"] == [subject]


def test_relative_names_are_found_in_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name, rows in (
        ("arc_easy/test.jsonl", [ARC, {**ARC, "answerKey": "1"}]),
        ("mmlu/test.jsonl", CASES["mmlu_us_foreign_policy"][1]),
        ("mmlu/dev.jsonl", CASES["mmlu_us_foreign_policy"][1]),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    manager = lm_eval_tasks.TaskManager(include_path=str(HERE), include_defaults=False)
    assert {"mmlu", "mmlu_stem", "humaneval", "xcopa_zh"} <= set(manager.all_tasks)
    tasks = manager.load(["arc_easy", "mmlu_us_foreign_policy"])["tasks"]
    assert [each["answerKey"] for each in tasks["arc_easy"].eval_docs] == ["2", "1"]
    assert [each["answer"] for each in tasks["mmlu_us_foreign_policy"].eval_docs] == [3]


def test_mbpp_asks_its_test_part_and_says_what_its_examples_need(
    built: Callable[[Path, list[Document]], ConfigurableTask],
) -> None:
    rows = [{**MBPP, "task_id": task} for task in (2, 3, 4, 10, 11, 510, 511)]
    task = built(own_file("mbpp"), rows)
    assert [each["task_id"] for each in task.eval_docs] == [11, 510]
    with pytest.raises(ValueError, match=r"lacks \[2, 3, 4\]"):
        built(own_file("mbpp"), rows[4:])


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_the_hubs_edition_differs_in_where_the_data_is(name: str) -> None:
    local, hub = (load_yaml(folder / f"{name}.yaml") for folder in (HERE, HUB))
    theirs = load_yaml(THEIRS / name / f"{name}.yaml", resolve_func=False)
    for key in ("dataset_path", "dataset_name", "dataset_kwargs"):
        assert hub.get(key) == theirs.get(key)
    where = {"dataset_path", "dataset_name", "dataset_kwargs", "fewshot_split"}
    assert {key: hub[key] for key in hub.keys() - where} == {
        key: local[key] for key in local.keys() - where
    }


def test_answers_that_are_code_pass_by_running() -> None:
    config = load_yaml(own_file("humaneval"))
    metric = config["metric_list"][0]["metric"]
    programs = config["filter_list"][0]["filter"][0]["filter_fn"](
        [["    return a + b", "    return a - b"], ["    return a +"]], [HUMANEVAL, HUMANEVAL]
    )
    tests = f"{HUMANEVAL['test']}\ncheck(add)"
    assert metric([tests, tests], programs, k=[1]) == {"pass@1": 0.25}
    assert metric([tests], programs[:1], k=[1, 2]) == {"pass@1": 0.5, "pass@2": 1.0}
    pass_at_1 = load_yaml(own_file("mbpp"))["metric_list"][0]["metric"]
    right = "def add(a, b):\n    return a + b"
    assert pass_at_1(["\n".join(MBPP["test_list"])], [right]) == 1.0
    assert pass_at_1(["\n".join(MBPP["test_list"])], ["add = max"]) == 0.0
