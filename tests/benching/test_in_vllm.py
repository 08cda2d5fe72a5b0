"""What comes before vLLM, and how it is called: a stand-in takes its place."""

import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

from depthcut.benching import in_vllm
from depthcut.benching.in_transformers import InTransformers
from depthcut.benching.in_vllm import open_model
from depthcut.errors import CheckpointError, SettingsError
from depthcut.model.loading import from_memory
from depthcut.settings import BenchSettings, LoadSettings
from tests.tiny import build_tiny, save_tiny

SETTINGS = BenchSettings(engine="vllm", prompt_tokens=6, new_tokens=3, batch_sizes=(1, 2))
LOAD = LoadSettings()


class Standin:
    """Takes the options and requests that vLLM would."""

    made: list[dict[str, object]]
    asked: list[tuple[list[list[int]], dict[str, object]]]

    def __init__(self, **options: object) -> None:
        self.made.append(options)

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling: dict[str, object], use_tqdm: bool
    ) -> None:
        assert not use_tqdm
        self.asked.append(([each["prompt_token_ids"] for each in prompts], sampling))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[Standin]:
    Standin.made, Standin.asked = [], []
    module = types.ModuleType("vllm")
    module.LLM = Standin  # type: ignore[attr-defined]
    module.SamplingParams = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(in_vllm, "find_spec", lambda _: object())
    monkeypatch.setattr(in_vllm, "_has_gpu", lambda: True)
    return Standin


def test_runs_are_greedy_end_at_their_length_and_find_no_earlier_prompts(
    vllm: type[Standin], tiny_llama: Path
) -> None:
    engine = open_model(tiny_llama, SETTINGS, LOAD, among=2)
    (made,) = vllm.made
    assert made["model"] == str(tiny_llama)
    assert made["max_model_len"] == 9
    assert made["max_num_seqs"] == 2
    assert made["enable_prefix_caching"] is False
    assert made["gpu_memory_utilization"] == pytest.approx(0.45)
    run = engine.once([[1, 2], [3, 4]], 3)
    assert run.prefill_seconds > 0
    assert run.decode_seconds > 0
    assert [prompts for prompts, _ in vllm.asked] == [[[1, 2], [3, 4]]] * 2
    assert [sampling["max_tokens"] for _, sampling in vllm.asked] == [1, 3]
    assert all(sampling["ignore_eos"] for _, sampling in vllm.asked)
    assert (engine.threads, engine.gpus, engine.positions) == (None, (0,), 512)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "gpt_neox", "opt"])
def test_headers_tell_the_same_work_as_the_model_itself(
    vllm: type[Standin], model_type: str, tmp_path: Path
) -> None:
    model = build_tiny(model_type)
    save_tiny(model, tmp_path)
    found = open_model(tmp_path, SETTINGS, LOAD)
    assert found.work == InTransformers(from_memory(model, None)).work
    assert found.vocabulary == 264


@pytest.mark.parametrize(
    ("settings", "load", "message"),
    [
        (BenchSettings(threads=2), LOAD, "--threads means nothing to --engine vllm"),
        (SETTINGS, LoadSettings(load_in_4bit=True), "--load-in-4bit means nothing"),
        (SETTINGS, LoadSettings(device="cpu"), "--device cpu means nothing"),
    ],
)
def test_options_that_mean_nothing_to_it_are_refused(
    vllm: type[Standin],
    tiny_llama: Path,
    settings: BenchSettings,
    load: LoadSettings,
    message: str,
) -> None:
    with pytest.raises(SettingsError, match=message):
        open_model(tiny_llama, settings, load)
    assert not vllm.made


def test_what_vllm_cannot_load_is_refused_with_its_reason(
    vllm: type[Standin], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Standin, **_: object) -> None:
        raise ValueError("no room\nfor the cache")

    monkeypatch.setattr(vllm, "__init__", refuse)
    with pytest.raises(CheckpointError, match=r"vLLM cannot load .*: no room for the cache"):
        open_model(tiny_llama, SETTINGS, LOAD)


def test_without_the_package_or_a_gpu_it_says_what_is_needed(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_vllm, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="pip install vllm"):
        open_model(tiny_llama, SETTINGS, LOAD)
    monkeypatch.setattr(in_vllm, "find_spec", lambda _: object())
    monkeypatch.setattr(in_vllm, "_has_gpu", lambda: False)
    with pytest.raises(SettingsError, match="needs a GPU"):
        open_model(tiny_llama, SETTINGS, LOAD)
