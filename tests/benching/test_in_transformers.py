from pathlib import Path

import pytest
import torch

from depthcut.benching.bench import measure
from depthcut.benching.engine import Engine, random_prompts
from depthcut.benching.in_transformers import InTransformers, open_model
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.settings import BenchSettings, LoadSettings
from tests.tiny import TINY_TYPES, VOCABULARY, build_tiny

SETTINGS = BenchSettings(rounds=3, prompt_tokens=16, new_tokens=5, batch_sizes=(1, 2))
PROMPTS = random_prompts(VOCABULARY, 8, 2)


def watched(name: str, calls: list[tuple[str, tuple[int, ...]]]) -> LoadedModel:
    def note(_module: object, _args: object, given: dict[str, object], _output: object) -> None:
        calls.append((name, tuple(given["input_ids"].shape)))  # type: ignore[attr-defined]

    loaded = from_memory(build_tiny("llama"), None)
    loaded.model.register_forward_hook(note, with_kwargs=True)
    return loaded


def test_a_run_is_one_pass_over_the_prompts_and_one_for_each_further_token() -> None:
    calls: list[tuple[str, tuple[int, ...]]] = []
    models: dict[str, Engine] = {name: InTransformers(watched(name, calls)) for name in "ab"}
    found = measure(models, SETTINGS)
    step = [(1, 16), *[(1, 1)] * 4], [(2, 16), *[(2, 1)] * 4]
    of_a, of_b = ([shape for each, shape in calls if each == name] for name in "ab")
    assert of_a == of_b == [*step[0] * 4, *step[1] * 4]
    turns = [name for name, (_, tokens) in calls if tokens == 16]
    assert turns == list("abababab" * 2)
    for laps in (found[1]["a"], found[2]["b"]):
        assert len(laps.runs) == 3
        assert all(min(run.prefill_seconds, run.decode_seconds) > 0 for run in laps.runs)
        assert all(run.device_bytes is None for run in laps.runs)


@pytest.mark.parametrize("model_type", list(TINY_TYPES))
def test_every_architecture_can_be_timed_in_batches(model_type: str) -> None:
    engine = InTransformers(from_memory(build_tiny(model_type), None))
    run = engine.once(PROMPTS, 3)
    assert min(run.prefill_seconds, run.decode_seconds) > 0
    assert run.cache_bytes


def test_the_cache_is_measured_to_the_byte() -> None:
    engine = InTransformers(from_memory(build_tiny("llama"), None))
    tokens, heads, width = 8 + 4 - 1, 2, 12  # the last token is written, not read
    assert engine.once(PROMPTS, 4).cache_bytes == 2 * 2 * 6 * heads * width * tokens * 4


def test_a_tied_head_is_read_and_a_table_of_its_own_is_not() -> None:
    works = {
        tied: InTransformers(from_memory(build_tiny("llama", tied=tied), None)).work
        for tied in (True, False)
    }
    assert works[True] == works[False]
    model = build_tiny("llama", tied=False)
    table = VOCABULARY * 48
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert works[False].head_parameters == table
    assert works[False].read_bytes == 4 * (everything - table)
    assert works[False].parameters == everything - 2 * table


def test_positions_that_are_looked_up_are_not_read() -> None:
    model = build_tiny("gpt2")
    work = InTransformers(from_memory(model, None)).work
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert work.parameters == everything - VOCABULARY * 48 - 512 * 48


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_of_experts_those_count_that_a_token_visits(model_type: str) -> None:
    model = build_tiny(model_type)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    others = sum(p.numel() for name, p in model.named_parameters() if ".experts." not in name)
    assert experts > 0
    work = InTransformers(from_memory(model, None)).work
    table = VOCABULARY * 48
    assert work.parameters + work.head_parameters == others - table + experts // 2


def test_threads_are_those_asked_for_until_the_model_is_closed(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    model = build_tiny("llama")
    engine = open_model(model, BenchSettings(threads=before + 1), LoadSettings())
    assert engine.threads == torch.get_num_threads() == before + 1
    engine.close()
    assert torch.get_num_threads() == before


def test_a_model_in_training_mode_is_timed_without_dropout_and_left_in_it() -> None:
    model = build_tiny("gpt2").train()
    engine = open_model(model, BenchSettings(), LoadSettings())
    engine.once(PROMPTS, 2)
    assert model.training
    assert engine.positions == 512
