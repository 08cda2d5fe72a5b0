"""Streamed surveys against those of the same model in memory."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from depthcut import api
from depthcut.errors import SettingsError
from depthcut.model import layer_weights
from depthcut.model.streaming import LayerMemory
from depthcut.records import Survey
from depthcut.settings import LoadSettings, SurveySettings
from depthcut.surveying import streamed
from depthcut.surveying.criteria import CRITERIA
from depthcut.text.sequences import Batch
from tests.surveying.surveys_for_tests import flat, per_sequence
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

STREAMED = tuple(
    name
    for name, each in CRITERIA.items()
    if each.needs not in ("gradients", "losses", "full batches", "part")
)
CPU = LoadSettings(device="cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(build_tiny("qwen3_moe"), folder, max_shard_size=200_000)
    tiny_tokenizer(folder)
    return folder


def survey(model: Path, **settings: object) -> Survey:
    asked = {"context": 24, "tokens": 240, "batch_size": 2, "criteria": STREAMED, **settings}
    return api.survey(model, SurveySettings(**asked), load=CPU)  # type: ignore[arg-type]


def test_every_criterion_of_states_and_weights_is_as_in_memory(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_weights, "_ROW_TABLE_BYTES", 1)
    found, expected = survey(model, stream=True), survey(model)
    assert [each.criterion for each in found.scores] == [each.criterion for each in expected.scores]
    assert {each.criterion for each in found.scores} == set(STREAMED)
    assert found.norms == pytest.approx(expected.norms, rel=1e-6)
    for scores, others in zip(found.scores, expected.scores, strict=True):
        assert torch.allclose(flat(scores.mean), flat(others.mean), rtol=1e-6, atol=1e-9)
        assert torch.allclose(per_sequence(scores), per_sequence(others), rtol=1e-6, atol=1e-9)
    assert found.model == expected.model


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - set(STREAMED)))
def test_a_criterion_that_needs_the_whole_model_is_refused(model: Path, criterion: str) -> None:
    with pytest.raises(SettingsError, match=f"{criterion} cannot be measured with --stream"):
        survey(model, stream=True, criteria=("angular", criterion))


def test_too_little_memory_is_refused_with_the_figure_that_would_do(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "resident_bytes", lambda: 400_000_000)
    monkeypatch.setattr(streamed, "measured_memory", lambda *_: [])
    with pytest.raises(SettingsError, match=r"give --memory \d+\.\d\dGB") as refused:
        survey(model, stream=True, memory="50MB")
    figure = re.findall(r"--memory (\S+GB)", str(refused.value))[0]
    assert survey(model, stream=True, memory=figure).norms


def test_what_was_measured_counts_where_it_is_more_than_the_estimate(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = LayerMemory(entering=10**9, there=10**8, sequence=6 * 10**8)
    monkeypatch.setattr(streamed, "resident_bytes", lambda: 400_000_000)
    monkeypatch.setattr(streamed, "measured_memory", lambda *_: [layer])
    with pytest.raises(SettingsError, match=r"batches of 2 × 24 tokens.* give --memory 1\.\d\dGB"):
        survey(model, stream=True, memory="1GB")
    assert survey(model, stream=True, memory="2GB").norms


def test_batches_become_smaller_until_they_fit(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "resident_bytes", lambda: 0)
    monkeypatch.setattr(streamed, "_UNCOUNTED_BYTES", 0)
    monkeypatch.setattr(streamed, "_THREAD_BYTES", 0)
    monkeypatch.setattr(streamed, "measured_memory", lambda *_: [])
    monkeypatch.setattr(streamed._Streamed, "_refuse_full_disk", lambda _: None)
    sizes: dict[str, int] = {}

    for memory in ("1MB", "2MB", "20MB"):

        def stop(
            _: object, batches: tuple[Batch, ...], *__: int, at: str = memory, **___: object
        ) -> None:
            sizes[at] = len(batches[0].ids)
            raise _StoppedError

        monkeypatch.setattr(streamed, "streaming_states", stop)
        settings = SurveySettings(context=24, tokens=2400, stream=True, memory=memory)
        with pytest.raises(_StoppedError):
            api.survey(model, settings, load=CPU)
    assert 1 <= sizes["1MB"] < sizes["2MB"] < sizes["20MB"] == 32


class _StoppedError(Exception):
    pass


def test_a_full_disk_is_told_beforehand(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    monkeypatch.setattr(streamed._Streamed, "_limit_bytes", lambda self, used: 1 << 31)
    monkeypatch.setattr(streamed._Streamed, "_needed_bytes", lambda *_: (1 << 31) - 10_000)
    monkeypatch.setattr(streamed, "resident_bytes", lambda: 0)
    with pytest.raises(SettingsError, match="set TMPDIR"):
        survey(model, stream=True)


def test_memory_without_stream_is_refused(model: Path) -> None:
    with pytest.raises(SettingsError, match="add --stream"):
        survey(model, memory="8GB")


def test_stopping_early_is_refused(model: Path) -> None:
    with pytest.raises(SettingsError, match="nothing is saved by --confidence"):
        survey(model, stream=True, confidence=0.95)


def test_a_model_in_memory_is_not_streamed() -> None:
    with pytest.raises(SettingsError, match="not streamed"):
        api.survey(build_tiny("llama"), SurveySettings(stream=True))


def test_a_size_that_is_none_is_refused(model: Path) -> None:
    with pytest.raises(SettingsError, match="memory much: write a size"):
        survey(model, stream=True, memory="much")
