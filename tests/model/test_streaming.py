"""States streamed from a checkpoint against those of the model in memory, on every type."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthcut.errors import ArchitectureError, CheckpointError, DepthcutError, SettingsError
from depthcut.model import layer_weights
from depthcut.model.loading import load
from depthcut.model.states import reading_states
from depthcut.model.streaming import (
    LayerMemory,
    measured_memory,
    open_streamed,
    streaming_states,
)
from depthcut.settings import LoadSettings
from depthcut.text.sequences import Batch, padded
from tests.every_type import build, model_types
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

CPU = LoadSettings(device="cpu")
BATCHES = tuple(
    padded([torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length))
            for length in lengths])
    for lengths in ((24, 17), (9, 20), (12,))
)  # fmt: skip

UNSTREAMED = {
    "dory": "run several times",
    "gemma3n_text": "more to each other",
    "gemma4": "more to each other",
    "gemma4_text": "more to each other",
    "glm_moe_dsa": "more to each other",
    "hrm_text": "run several times",
    "hy_v4": "more to each other",
    "inkling2_loop_text": "all later layers attend to",
    "inkling2_text": "all later layers attend to",
    "mllama": "does not run each of its layers once",
    "reformer": "more to each other",
    "rwkv": "more to each other",
    "xlm": "more to each other",
    "zamba": "one by one",
    "zamba2": "one by one",
    "zaya": "more to each other",
}
"""By model type: why its layers cannot be run one by one. docs/method.md names them."""
UNREAD = frozenset(
    {
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"),
        *("pegasus", "plbart", "prophetnet", "whisper", "hrm_text", "longcat_flash"),  # no one list
        *("emu3", "mllama"),
    }
)
"""Whose states cannot be had in memory either."""


def streamed_states(
    folder: Path, *, memory_bytes: int = 0, batches: Sequence[Batch] = BATCHES, **settings: object
) -> list[tuple[Tensor, ...]]:
    loading = LoadSettings(**{"device": "cpu", **settings})  # type: ignore[arg-type]
    with streaming_states(open_streamed(folder, loading), batches, memory_bytes) as read:
        return [read(number) for number in range(len(batches))]


def states_in_memory(folder: Path, **settings: object) -> list[tuple[Tensor, ...]]:
    loading = LoadSettings(**{"device": "cpu", **settings})  # type: ignore[arg-type]
    with reading_states(load(folder, loading)) as read:
        return [tuple(state.clone() for state in read(batch)) for batch in BATCHES]


def saved(model: PreTrainedModel, folder: Path, *, shards: int | str = 200_000) -> Path:
    return save_tiny(model, folder, max_shard_size=shards)


@pytest.fixture(autouse=True)
def _small_embeddings_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_weights, "_ROW_TABLE_BYTES", 1)


@pytest.mark.parametrize("model_type", sorted(TINY_TYPES))
def test_states_are_those_of_the_model_in_memory(model_type: str, tmp_path: Path) -> None:
    folder = saved(build_tiny(model_type), tmp_path / "model")
    for found, expected in zip(streamed_states(folder), states_in_memory(folder), strict=True):
        assert len(found) == len(expected) == 7
        assert all(map(torch.equal, found, expected))


@pytest.mark.slow  # three minutes: some 190 types
@pytest.mark.parametrize(
    "model_type", sorted(set(model_types()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {"blt"})
)
def test_every_type_is_streamed_rightly_or_refused(model_type: str, tmp_path: Path) -> None:
    folder = saved(build(model_type), tmp_path / "model", shards="5GB")
    if model_type in UNREAD | set(UNSTREAMED):
        with pytest.raises(DepthcutError, match=UNSTREAMED.get(model_type, "")):
            streamed_states(folder)
        return
    for found, expected in zip(streamed_states(folder), states_in_memory(folder), strict=True):
        for state, other in zip(found, expected, strict=True):
            assert (state - other).norm() <= 1e-6 * other.norm()


def test_half_precision_is_read_as_it_is_and_computed_as_asked(tmp_path: Path) -> None:
    folder = saved(build_tiny("llama").bfloat16(), tmp_path / "model")
    for dtype in ("bfloat16", "float32"):
        found, expected = (
            streamed_states(folder, dtype=dtype),
            states_in_memory(folder, dtype=dtype),
        )
        assert found[0][3].dtype == getattr(torch, dtype)
        assert all(map(torch.equal, found[1], expected[1]))


def test_states_are_kept_in_memory_and_in_a_file_alike(tmp_path: Path) -> None:
    folder = saved(build_tiny("qwen3"), tmp_path / "model")
    in_file, mixed = streamed_states(folder), streamed_states(folder, memory_bytes=100_000)
    for some, others in zip(in_file, mixed, strict=True):
        assert all(map(torch.equal, some, others))


def test_two_layers_at_most_are_there_at_a_time(tmp_path: Path) -> None:
    streamed = open_streamed(saved(build_tiny("llama"), tmp_path / "model"), CPU)
    layers, there = streamed.loaded.layers, []

    def passing(layer: int, _: torch.nn.Module) -> None:
        there.append([i for i, each in enumerate(layers) if not next(each.parameters()).is_meta])

    with streaming_states(streamed, BATCHES, 0, passing=passing):
        pass
    assert there == [[layer] for layer in range(6)]
    assert all(weight.is_meta for weight in streamed.loaded.model.parameters())
    largest = max(sum(each.nbytes for each in layer.parameters()) for layer in layers)
    assert largest * 2 <= streamed.weights.streaming_bytes <= largest * 2 + 64 * 2 * 16


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own peak")
@pytest.mark.parametrize(("model_type", "kinds"), [("llama", 1), ("qwen3_moe", 2)])
def test_what_layers_take_is_measured_once_for_each_kind(
    model_type: str, kinds: int, tmp_path: Path
) -> None:
    streamed = open_streamed(saved(build_tiny(model_type), tmp_path / "model"), CPU)
    assert len(measured_memory(streamed, BATCHES[0].ids[0])) == kinds
    assert all(weight.is_meta for weight in streamed.loaded.model.parameters())
    with streaming_states(streamed, BATCHES[:1], 0) as read:
        found = read(0)
    assert all(map(torch.equal, found, states_in_memory(tmp_path / "model")[0]))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own peak")
def test_what_a_layer_computes_on_its_way_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamed = open_streamed(saved(build_tiny("llama"), tmp_path / "model"), CPU)
    (plain,) = measured_memory(streamed, BATCHES[0].ids[0])
    attention, taken = streamed.loaded.layers[0].self_attn, 64 << 20
    forward = attention.forward

    def wasteful(*args: object, **kwargs: object) -> object:
        torch.ones(taken if kwargs["hidden_states"].shape[1] > 16 else 1, dtype=torch.uint8)
        return forward(*args, **kwargs)

    monkeypatch.setattr(attention, "forward", wasteful)
    (found,) = measured_memory(streamed, BATCHES[0].ids[0])
    assert found.sequence > plain.sequence + taken // 2


def test_what_a_batch_takes_grows_with_its_sequences() -> None:
    layer = LayerMemory(entering=50, there=30, sequence=7)
    assert [layer.running(size) for size in (1, 2, 4)] == [50, 50, 58]


def test_layers_may_be_entered_in_any_order(tmp_path: Path) -> None:
    model = build_tiny("llama")
    streamed = open_streamed(saved(model, tmp_path / "model"), CPU)
    with streamed.weights.there():
        for layer in (3, 1, 2, 5):
            there = dict(streamed.weights.enter(layer).named_parameters())
            for name, weight in cast(Any, model).model.layers[layer].named_parameters():
                assert torch.equal(there[name], weight)


def test_a_model_can_be_streamed_again(tmp_path: Path) -> None:
    streamed = open_streamed(saved(build_tiny("gemma2"), tmp_path / "model"), CPU)
    found = []
    for _ in range(2):
        with streaming_states(streamed, BATCHES[:1], 0) as read:
            found.append(read(0))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("model_type", ["gemma3n_text", "rwkv", "zamba2"])
def test_layers_that_cannot_be_run_alone_are_refused(model_type: str, tmp_path: Path) -> None:
    folder = saved(build(model_type), tmp_path / "model")
    with pytest.raises(ArchitectureError, match=UNSTREAMED[model_type]):
        streamed_states(folder)


def test_a_checkpoint_without_a_layers_tensor_is_refused(tmp_path: Path) -> None:
    folder = saved(build_tiny("llama"), tmp_path / "model", shards="5GB")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.4.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layers\.4\.mlp\.up_proj"):
        streamed_states(folder)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = saved(build_tiny("llama"), tmp_path / "model", shards="5GB")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(3, 48)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.up_proj\.weight does not fit"):
        streamed_states(folder)


def test_a_file_that_changes_on_the_way_is_told(tmp_path: Path) -> None:
    folder = saved(build_tiny("llama"), tmp_path / "model", shards="5GB")
    streamed = open_streamed(folder, CPU)
    (folder / "model.safetensors").touch()
    with (
        pytest.raises(CheckpointError, match="was changed"),
        streaming_states(streamed, BATCHES, 0),
    ):
        pass


@pytest.mark.parametrize("model_type", UNSTREAMED)
def test_the_method_page_names_the_types_that_do_not_stream(model_type: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "method.md"
    assert f"`{model_type}`" in page.read_text(encoding="utf-8").partition("Refused types")[2]


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    model = build_tiny("llama")
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        config.replace("{", '{"quantization_config": {"quant_method": "fp8"},', 1)
    )
    with pytest.raises(SettingsError, match="is quantised"):
        open_streamed(tmp_path, CPU)


def test_several_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="one device"):
        open_streamed(tmp_path, LoadSettings(device="map"))


def test_a_model_that_runs_its_layers_in_another_order_is_refused(tmp_path: Path) -> None:
    streamed = open_streamed(saved(build_tiny("llama"), tmp_path / "model"), CPU)
    first, second, *rest = streamed.loaded.layers
    cast(Any, streamed.loaded.backbone).layers = nn.ModuleList([second, first, *rest])
    with (
        pytest.raises(ArchitectureError, match="does not run each of its layers once"),
        streaming_states(streamed, BATCHES, 0),
    ):
        pass
