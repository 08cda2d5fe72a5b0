import gzip
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from transformers import PreTrainedTokenizerBase

from depthcut.errors import SettingsError, SourceError
from depthcut.evaluation import evaluate
from depthcut.evaluation.candidates import Candidate
from depthcut.evaluation.evaluate import Reading, evaluate_models
from depthcut.evaluation.inputs import evaluation_inputs
from depthcut.model.loading import LoadedModel
from depthcut.records import Evaluation
from depthcut.settings import EvaluateSettings, LoadSettings
from depthcut.text.sequences import Sequences
from tests.evaluation.benchmarks.task_folder import write_tasks
from tests.evaluation.models_for_tests import mixed, sequences_of, tiny

SETTINGS = EvaluateSettings(new_tokens=3, batch_size=2)
LOAD = LoadSettings()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "cache"))


def evaluated(
    models: dict[str, LoadedModel],
    settings: EvaluateSettings = SETTINGS,
    sequences: Sequences | None = None,
    out: Path | None = None,
) -> Evaluation:
    candidates = [candidate(name, loaded) for name, loaded in models.items()]
    read = sequences or sequences_of([9, 9])
    reading = Reading("d", lambda loaded: read) if settings.tokens else None
    return evaluate_models(candidates, reading, settings, LOAD, out=out)


def candidate(name: str, loaded: LoadedModel) -> Candidate:
    return Candidate(name, loaded.facts, lambda: loaded)


def not_loaded(name: str, loaded: LoadedModel) -> Candidate:
    def load() -> LoadedModel:
        raise AssertionError("loaded, though nothing is asked of it")

    return Candidate(name, loaded.facts, load)


def test_everything_asked_for_is_in_the_record(tmp_path: Path) -> None:
    models = {"whole": tiny(tmp_path), "cut": tiny(tmp_path, noise=0.05)}
    sequences = sequences_of([20, 20, 9])
    found = evaluated(models, SETTINGS, sequences)
    assert [each.name for each in found.models] == ["whole", "cut"]
    assert [each.name for each in found.comparisons] == ["cut"]
    assert found.text == sequences.facts
    assert len(found.prompts) == 10
    for each in found.models:
        assert len(each.generations) == 10
        assert each.degeneration is not None
        assert each.degeneration.reference_perplexity is not None
    assert found.models[0].degeneration.agreement is None  # type: ignore[union-attr]
    assert found.models[1].degeneration.agreement is not None  # type: ignore[union-attr]
    digests = [each.model.digest for each in found.models]
    assert found.origin.inputs == evaluation_inputs(digests, "d", SETTINGS, LOAD)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_several_texts_are_in_the_record_apart_and_kept(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, new_tokens=0)
    models = {"whole": tiny(tmp_path), "cut": tiny(tmp_path, noise=0.05)}
    found = evaluated(models, settings, mixed((9, 12, 9, 7), (0, 1, 0, 1)))
    assert [[each.source for each in model.texts] for model in found.models] == [
        ["first.txt", "second.txt"]
    ] * 2
    assert [cut.loss_difference is None for _, cut in found.by_text] == [False, False]
    again = evaluated(models, settings)
    assert again.by_text == found.by_text
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_what_was_kept_before_texts_were_judged_apart_is_measured_anew(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, new_tokens=0)
    sequences = mixed((9, 12, 9, 7), (0, 1, 0, 1))
    models = {"a": tiny(tmp_path)}
    found = evaluated(models, settings, sequences)
    (kept,) = (tmp_path / "cache" / "evaluations").glob("*.json.gz")
    old = json.loads(gzip.decompress(kept.read_bytes()))
    for quality in old["qualities"]:
        del quality["texts"]
    kept.write_bytes(gzip.compress(json.dumps(old).encode()))
    assert evaluated(models, settings, sequences).by_text == found.by_text != ()


def test_a_record_from_before_texts_were_judged_apart_is_read(tmp_path: Path) -> None:
    found = evaluated({"a": tiny(tmp_path)}, msgspec.structs.replace(SETTINGS, new_tokens=0))
    old = json.loads(msgspec.json.encode(found))
    for model in old["models"]:
        del model["texts"]
    assert msgspec.json.decode(json.dumps(old), type=Evaluation) == found


def test_generations_can_be_left_out(tmp_path: Path) -> None:
    found = evaluated({"a": tiny(tmp_path)}, msgspec.structs.replace(SETTINGS, new_tokens=0))
    assert (found.models[0].generations, found.models[0].degeneration) == ((), None)
    assert found.prompts == ()


def test_the_text_can_be_left_out(tmp_path: Path) -> None:
    found = evaluated({"a": tiny(tmp_path)}, msgspec.structs.replace(SETTINGS, tokens=0))
    assert (found.text, found.models[0].loss, found.comparisons) == (None, None, ())


def test_a_model_in_training_mode_is_judged_without_dropout_and_left_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny(tmp_path, model_type="gpt2")
    settings = msgspec.structs.replace(SETTINGS, new_tokens=0)
    quiet = evaluated({"a": loaded}, settings)
    loaded.model.train()
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "another"))
    trained = evaluated({"a": loaded}, settings)
    assert trained.models[0].loss == quiet.models[0].loss
    assert loaded.model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_tokens": -1}, "--new-tokens -1: expected a number of at least 0"),
        ({"tokens": -1}, "--tokens -1: expected a number of at least 0"),
        ({"batch_size": 0}, "--batch-size 0: expected a number of at least 1"),
        ({"tokens": 0, "new_tokens": 0}, "leave nothing to measure: name --tasks"),
        ({"tasks": ("colours",), "limit": 1}, "--limit 1: expected at least 2 questions"),
        ({"tasks": ("colours:few",)}, "a number of examples, such as colours:5"),
        ({"tasks": ("quick:5",)}, "quick says itself how many examples"),
        ({"tasks": ("mmlu:5,mmlu",)}, "mmlu twice .mmlu:5 and mmlu."),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    settings = msgspec.structs.replace(SETTINGS, **change)
    with pytest.raises(SettingsError, match=message):
        evaluate_models([not_loaded("a", tiny(tmp_path))], None, settings, LOAD)


def test_no_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="no model"):
        evaluated({})


@pytest.mark.parametrize("field", ["include", "data"])
def test_a_folder_that_is_not_there_is_told_before_a_model_is_loaded(
    tmp_path: Path, field: str
) -> None:
    folder = str(tmp_path / "none")
    change = {field: (folder,) if field == "include" else folder, "tasks": ("arc_easy",)}
    settings = msgspec.structs.replace(SETTINGS, **change)
    with pytest.raises(SourceError, match=f"--{field} .*none: no such folder"):
        evaluate_models([not_loaded("a", tiny(tmp_path))], None, settings, LOAD)


def test_missing_prompts_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, prompts=str(tmp_path / "none.txt"))
    with pytest.raises(SourceError, match="no file"):
        evaluated({"a": tiny(tmp_path)}, settings)


def test_models_of_other_tokens_are_compared_on_tasks_alone(tmp_path: Path) -> None:
    def shout(text: str, **options: object) -> list[int]:
        return [len(text)]

    other = tiny(tmp_path, noise=0.05)
    assert isinstance(other.tokenizer, PreTrainedTokenizerBase)
    other.tokenizer.encode = shout  # type: ignore[method-assign,assignment]
    models = {"a": tiny(tmp_path), "b": other}
    with pytest.raises(SettingsError, match=r"different tokenizers: .* --tokens 0"):
        evaluated(models, msgspec.structs.replace(SETTINGS, new_tokens=0))


class TestTasks:
    """With lm-eval, on tasks invented for it."""

    @pytest.fixture
    def settings(self, tmp_path: Path) -> EvaluateSettings:
        pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'depthcut[eval]'")
        folder = write_tasks(tmp_path / "tasks", items=20)
        tasks = ("colours,endings", "pair", "pages")
        return msgspec.structs.replace(
            SETTINGS, tokens=0, new_tokens=0, tasks=tasks, include=(str(folder),)
        )

    def test_models_stand_side_by_side_on_the_same_items(
        self, settings: EvaluateSettings, tmp_path: Path
    ) -> None:
        models = {"whole": tiny(tmp_path), "cut": tiny(tmp_path, noise=0.3)}
        out = tmp_path / "evaluation.json"
        found = evaluated(models, settings, out=out).tasks
        assert found is not None
        names = ["colours", "endings", "pair", "first", "second", "pages"]
        assert [each.name for each in found.tasks] == names
        assert [each.name for each in found.chief] == ["colours", "endings", "pair", "pages"]
        assert [each.model for each in found.averages] == ["whole", "cut"]
        assert found.averages[1].tasks == ("colours", "endings", "pair")
        for task in found.tasks:
            before, after = (found.score(name, task) for name in models)
            difference = found.difference("cut", task.name)
            assert before is not None
            assert after is not None
            assert difference is not None
            assert difference.difference.value == pytest.approx(after.value - before.value)
            if task.name != "pages":
                changed = difference.gained - difference.lost
                assert changed == round(difference.difference.value * task.items)
        lines = gzip.decompress((tmp_path / found.samples).read_bytes()).decode().splitlines()
        assert len(lines) == 20 * 5
        samples = [json.loads(line) for line in lines]
        of_colours = [each for each in samples if each["task"] == "colours"]
        mean = sum(each["models"]["cut"]["scores"]["acc_norm"] for each in of_colours) / 20
        score = found.score("cut", found.tasks[0])
        assert score is not None
        assert mean == pytest.approx(score.value)

    def test_what_was_answered_is_not_asked_again(
        self, settings: EvaluateSettings, tmp_path: Path
    ) -> None:
        models = {"whole": tiny(tmp_path), "cut": tiny(tmp_path, noise=0.3)}
        first = evaluated(models, settings)
        here = [not_loaded(f"again {name}", each) for name, each in models.items()]
        again = evaluate_models(here, None, settings, LOAD)
        assert first.tasks is not None
        assert again.tasks is not None
        assert [each.value for each in again.tasks.scores] == [
            each.value for each in first.tasks.scores
        ]
        with pytest.raises(AssertionError, match="loaded"):
            evaluate_models(here, None, settings, LOAD, fresh=True)

    @pytest.mark.parametrize(
        "change",
        [
            lambda tasks: (tasks / "items.jsonl").write_text(
                (tasks / "items.jsonl").read_text().replace("number 3", "number 33")
            ),
            lambda tasks: (tasks / "colours.yaml").write_text(
                (tasks / "colours.yaml").read_text().replace("Answer:", "It is")
            ),
        ],
    )
    def test_changed_questions_are_asked_again(
        self, settings: EvaluateSettings, tmp_path: Path, change: Callable[[Path], object]
    ) -> None:
        only = msgspec.structs.replace(settings, tasks=("colours",))
        model = tiny(tmp_path)
        evaluated({"a": model}, only)
        change(tmp_path / "tasks")
        with pytest.raises(AssertionError, match="loaded"):
            evaluate_models([not_loaded("a", model)], None, only, LOAD)

    def test_samples_without_their_record_are_replaced(
        self, settings: EvaluateSettings, tmp_path: Path
    ) -> None:
        only = msgspec.structs.replace(settings, tasks=("colours",))
        samples = tmp_path / "e.samples.jsonl.gz"
        samples.write_text("what a killed command left")
        evaluated({"a": tiny(tmp_path)}, only, out=tmp_path / "e.json")
        assert len(gzip.decompress(samples.read_bytes()).splitlines()) == 20


def test_the_stage_imports_no_torch() -> None:
    import subprocess
    import sys

    code = f"import sys, {evaluate.__name__}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
