from pathlib import Path

import msgspec
import pytest

from depthcut.errors import SettingsError, SourceError
from depthcut.evaluation.evaluate import evaluate_models
from depthcut.evaluation.inputs import evaluation_inputs
from depthcut.records import Evaluation
from depthcut.settings import EvaluateSettings, LoadSettings
from tests.evaluation.models_for_tests import sequences_of, tiny

SETTINGS = EvaluateSettings(new_tokens=3, batch_size=2)
LOAD = LoadSettings()


def test_everything_asked_for_is_in_the_record(tmp_path: Path) -> None:
    models = {"whole": tiny(tmp_path), "cut": tiny(tmp_path, noise=0.05)}
    sequences = sequences_of([20, 20, 9])
    found = evaluate_models(models, sequences, SETTINGS, LOAD)
    assert [each.name for each in found.models] == ["whole", "cut"]
    assert [each.name for each in found.comparisons] == ["cut"]
    assert found.text == sequences.facts
    assert len(found.prompts) == 10
    for each in found.models:
        assert len(each.generations) == 10
    digests = [each.model.digest for each in found.models]
    assert found.origin.inputs == evaluation_inputs(digests, "d", SETTINGS, LOAD)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation) == found


def test_generations_can_be_left_out(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, new_tokens=0)
    found = evaluate_models({"a": tiny(tmp_path)}, sequences_of([9, 9]), settings, LOAD)
    assert found.models[0].generations == ()
    assert found.prompts == ()


def test_a_model_in_training_mode_is_judged_without_dropout_and_left_in_it(tmp_path: Path) -> None:
    loaded = tiny(tmp_path, model_type="gpt2")
    settings = msgspec.structs.replace(SETTINGS, new_tokens=0)
    quiet = evaluate_models({"a": loaded}, sequences_of([9, 9]), settings, LOAD)
    loaded.model.train()
    trained = evaluate_models({"a": loaded}, sequences_of([9, 9]), settings, LOAD)
    assert trained.models[0].loss == quiet.models[0].loss
    assert loaded.model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new_tokens": -1}, "--new-tokens -1: expected a number of at least 0"),
        ({"batch_size": 0}, "--batch-size 0: expected a number of at least 1"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    settings = msgspec.structs.replace(SETTINGS, **change)
    with pytest.raises(SettingsError, match=message):
        evaluate_models({"a": tiny(tmp_path)}, sequences_of([9, 9]), settings, LOAD)


def test_no_model_is_refused() -> None:
    with pytest.raises(SettingsError, match="no model"):
        evaluate_models({}, sequences_of([9, 9]), SETTINGS, LOAD)


def test_missing_prompts_are_told_before_anything_is_measured(tmp_path: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, prompts=str(tmp_path / "none.txt"))
    with pytest.raises(SourceError, match="no file"):
        evaluate_models({"a": tiny(tmp_path)}, sequences_of([9, 9]), settings, LOAD)
