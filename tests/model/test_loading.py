import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from depthcut.errors import ArchitectureError, CheckpointError, MissingExtraError, SettingsError
from depthcut.model import loading
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import find_layers, from_memory, in_eval_mode, load
from depthcut.model.positions import learned_positions
from depthcut.settings import LoadSettings
from tests.tiny import TINY_TYPES, build_tiny, save_tiny


def changed(folder: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of a checkpoint with other tensors."""
    out.mkdir()
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


def test_a_loaded_model_is_ready_to_measure(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, LoadSettings(device="cpu"))
    assert not loaded.model.training
    assert loaded.device == torch.device("cpu")
    assert loaded.model.dtype == torch.float32
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.chat_template
    assert loaded.folder == tiny_llama
    assert loaded.facts.source == str(tiny_llama)
    assert loaded.facts.layers == len(loaded.layers) == 6
    assert loaded.backbone is loaded.model.model


def test_a_dtype_is_obeyed(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, LoadSettings(device="cpu", dtype="bfloat16"))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_sharded_checkpoints_load_and_have_the_same_digest(
    tiny_llama: Path, tiny_llama_sharded: Path
) -> None:
    one, two = (load(each, LoadSettings()) for each in (tiny_llama, tiny_llama_sharded))
    assert one.facts.digest == two.facts.digest


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    save_tiny(build_tiny("llama"), tmp_path / "bare")
    assert load(tmp_path / "bare", LoadSettings()).tokenizer is None


def test_loading_says_nothing(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(tiny_llama, LoadSettings())
    assert capfd.readouterr() == ("", "")


def test_missing_tensors_are_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    folder = changed(tiny_llama, tmp_path / "lacking", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors of its model, such as {name}"):
        load(folder, LoadSettings())


def test_tensors_of_another_shape_are_an_error(tiny_llama: Path, tmp_path: Path) -> None:
    wrong = {"model.layers.2.mlp.up_proj.weight": torch.zeros(3, 3)}
    folder = changed(tiny_llama, tmp_path / "wrong", lambda tensors: tensors.update(wrong))
    with pytest.raises(CheckpointError, match="transformers cannot load") as caught:
        load(folder, LoadSettings())
    assert "\n" not in str(caught.value)


def test_unexpected_tensors_are_a_warning(
    tiny_llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"model.extra.weight": torch.zeros(3)}
    folder = changed(tiny_llama, tmp_path / "more", lambda tensors: tensors.update(extra))
    with caplog.at_level(logging.WARNING):
        load(folder, LoadSettings())
    assert "1 tensors that its model does not use, such as model.extra.weight" in caplog.text


def test_a_device_that_is_not_there_is_refused_before_anything_is_read() -> None:
    with pytest.raises(SettingsError, match="no device 'gpu'"):
        load("nowhere", LoadSettings(device="gpu"))


def test_four_bits_without_bitsandbytes_name_the_extra(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="bitsandbytes"):
        load(tiny_llama, LoadSettings(device="cpu", load_in_4bit=True))


def test_four_bits_load_where_bitsandbytes_is(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    model = build_tiny("llama", hidden_size=64, intermediate_size=128, head_dim=16)
    loaded = load(save_tiny(model, tmp_path / "m"), LoadSettings(device="cpu", load_in_4bit=True))
    assert type(loaded.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    with torch.inference_mode():
        assert loaded.model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


def test_a_model_spread_over_devices_is_measured(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, LoadSettings(device="map"))
    assert len(loaded.layers) == 6


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_every_type_s_layers_and_facts_are_found(model_type: str, tmp_path: Path) -> None:
    model = build_tiny(model_type)
    loaded = from_memory(model, None)
    assert len(loaded.layers) == 6
    assert not any("lm_head" in name for name, _ in loaded.backbone.named_modules())
    on_disk = load(save_tiny(model, tmp_path / "m"), LoadSettings()).facts
    assert loaded.facts.layer_parameters == on_disk.layer_parameters
    assert loaded.facts.other_parameters == on_disk.other_parameters
    assert loaded.facts.weight_bytes == on_disk.weight_bytes
    assert loaded.facts.hidden_size == on_disk.hidden_size
    assert loaded.facts.dtype == on_disk.dtype


def test_layers_of_unknown_types_are_the_only_list_of_their_number(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "stablelm",
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
    )
    model = AutoModelForCausalLM.from_config(config)
    loaded = load(save_tiny(model, tmp_path / "m"), LoadSettings())
    assert loaded.facts.layers == 3
    model.config.model_type = "novel"
    assert find_layers(model) is model.model.layers
    model.other = nn.ModuleList([nn.Linear(1, 1) for _ in range(3)])
    with pytest.raises(ArchitectureError, match=r"several lists of 3: model\.layers, other"):
        find_layers(model)
    model.model.layers = model.other = nn.ModuleList()
    with pytest.raises(ArchitectureError, match="no list of 3"):
        find_layers(model)


def test_the_digest_in_memory_follows_weights_and_config() -> None:
    model = build_tiny("llama")
    first = from_memory(model, None).facts.digest
    assert from_memory(build_tiny("llama"), None).facts.digest == first
    with torch.no_grad():
        model.model.layers[5].input_layernorm.weight[0] += 1
    second = from_memory(model, None).facts.digest
    model.config.rms_norm_eps *= 2
    assert len({first, second, from_memory(model, None).facts.digest}) == 3


def test_a_model_in_memory_is_left_as_it_is() -> None:
    model = build_tiny("gpt2").train()
    model.transformer.drop.eval()
    loaded = from_memory(model, None, name="mine")
    assert loaded.facts.source == "mine"
    with in_eval_mode(loaded.model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
    assert model.training
    assert not model.transformer.drop.training


def test_positions_are_limited_where_they_are_learned() -> None:
    assert learned_positions(from_memory(build_tiny("gpt2"), None)) == 512
    assert learned_positions(from_memory(build_tiny("opt"), None)) == 512
    assert learned_positions(from_memory(build_tiny("llama"), None)) is None


def test_batches_are_powers_of_two_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = from_memory(build_tiny("llama"), None)
    free = 0
    monkeypatch.setattr("depthcut.model.batching.free_memory_bytes", lambda _: free)
    sizes = []
    for free in (0, 10**6, 10**8, 10**9, 10**12):  # noqa: B007  read by the lambda
        sizes.append(fitting_batch_size(loaded, 512, bytes_per_token=10_000))
    assert sizes[0] == 1
    assert sizes == sorted(sizes)
    assert sizes[-1] == 32
    assert all(size & (size - 1) == 0 for size in sizes)
    assert fitting_batch_size(loaded, 512, bytes_per_token=1, most=5) == 4


def test_a_model_larger_than_the_machine_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_tiny("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "total_memory_bytes", lambda: 1000)
    with pytest.raises(SettingsError, match="layer by layer: --stream"):
        load(tmp_path, LoadSettings(device="cpu"))
