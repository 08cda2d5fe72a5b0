from pathlib import Path

import pytest

from depthcut.benching.footprint import measure_footprint
from depthcut.benching.speed import measure_speed, random_prompt, run_once, summarise
from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.settings import EvaluateSettings, LoadSettings
from tests.evaluation.models_for_tests import tiny
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

SETTINGS = EvaluateSettings(rounds=3, prefill_tokens=16, decode_tokens=4)


def watched(loaded: LoadedModel, name: str, calls: list[tuple[str, int]]) -> LoadedModel:
    def note(_module: object, _args: object, given: dict[str, object], _output: object) -> None:
        calls.append((name, given["input_ids"].shape[1]))  # type: ignore[attr-defined]  # a tensor

    loaded.model.register_forward_hook(note, with_kwargs=True)
    return loaded


def test_models_take_turns_and_the_first_round_does_not_count(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    models = {name: watched(tiny(tmp_path), name, calls) for name in "ab"}
    found = measure_speed(models, SETTINGS)
    assert [name for name, tokens in calls if tokens == 16] == list("abababab")
    assert len([1 for _, tokens in calls if tokens == 1]) == 2 * 4 * 4
    for measure in found.values():
        for speed in (measure.prefill, measure.decode):
            assert len(speed.rounds) == 3
            assert 0 < speed.low <= speed.median <= speed.high
        assert measure.peak_device_bytes is None


@pytest.mark.parametrize("model_type", list(TINY_TYPES))
def test_every_architecture_can_be_timed(model_type: str) -> None:
    loaded = from_memory(build_tiny(model_type), None)
    prompt = random_prompt({"a": loaded}, 8)
    assert min(run_once(loaded, prompt, 2)) > 0


def test_the_prompt_is_the_same_each_time_and_known_to_all() -> None:
    models = {
        "small": from_memory(build_tiny("llama"), None),
        "large": from_memory(build_tiny("llama", vocab_size=5000), None),
    }
    prompt = random_prompt(models, 500)
    assert prompt.shape == (1, 500)
    assert prompt.max() < 264
    assert prompt.equal(random_prompt(models, 500))


def test_summary_is_median_and_quartiles() -> None:
    found = summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert found.rounds == (4.0, 1.0, 3.0, 2.0, 5.0)
    once = summarise([7.0])
    assert (once.low, once.median, once.high) == (7.0, 7.0, 7.0)


def test_more_tokens_than_learned_positions_are_refused() -> None:
    models = {"a": from_memory(build_tiny("gpt2", max_position_embeddings=64), None)}
    with pytest.raises(SettingsError, match="--rounds 0"):
        measure_speed(models, EvaluateSettings(prefill_tokens=60, decode_tokens=5))


def test_footprint_sees_the_weights_and_not_the_callers_memory(tmp_path: Path) -> None:
    model = build_tiny("llama", layers=2, hidden_size=512, intermediate_size=4096, head_dim=128)
    save_tiny(model, tmp_path)
    ballast = bytearray(400 * 2**20)
    found = measure_footprint(tmp_path, SETTINGS, LoadSettings())
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    assert found is not None
    assert len(ballast) > 4 * weights
    assert weights < found < 4 * weights + 50 * 2**20


def test_a_footprint_that_cannot_be_measured_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert measure_footprint(tmp_path, SETTINGS, LoadSettings()) is None
    assert "config.json" in caplog.text
