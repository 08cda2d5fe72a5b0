from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from depthcut.errors import SettingsError
from depthcut.healing.heal import heal_checkpoint
from depthcut.healing.weights.targets import Targets
from depthcut.healing.weights.whole import opened
from depthcut.model.loading import from_memory, load
from depthcut.records import TextFacts
from depthcut.settings import HealMethod, HealSettings, LoadSettings
from depthcut.text.sequences import Sequences
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

LOAD = LoadSettings(device="cpu")
SETTINGS = HealSettings(method="full", steps=4, batch_size=4, learning_rate=5e-3, warmup_steps=1)


def counted() -> Sequences:
    ids = tuple(torch.arange(start, start + 24) % 200 for start in range(16))
    facts = TextFacts(source="counting", digest="text", sequences=16, tokens=24 * 16)
    return Sequences(facts, ids, (23,) * 16)


@pytest.mark.parametrize("model_type", list(TINY_TYPES))
def test_whole_weights_of_every_family_train_and_load(model_type: str, tmp_path: Path) -> None:
    base = save_tiny(build_tiny(model_type).to(torch.bfloat16), tmp_path / "base")
    record = heal_checkpoint(load(base, LOAD), counted(), SETTINGS, LOAD, tmp_path / "healed")
    assert record.trained_parameters == record.model.parameters
    assert record.judgements[-1].loss < record.judgements[0].loss
    before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / "healed"))
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {
        name: (t.dtype, t.shape) for name, t in after.items()
    }
    moved = [name for name, weight in after.items() if not weight.equal(before[name])]
    assert len(moved) > 0.8 * len(after)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", output_loading_info=True)
    assert not any(report.values())


def test_a_tied_head_that_is_stored_too_follows_the_embeddings(tmp_path: Path) -> None:
    base = save_tiny(build_tiny("llama", tied=True), tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    heal_checkpoint(load(base, LOAD), counted(), SETTINGS, LOAD, tmp_path / "healed")
    after = load_file(tmp_path / "healed" / "model.safetensors")
    assert after["lm_head.weight"].equal(after["model.embed_tokens.weight"])
    assert not after["lm_head.weight"].equal(tensors["lm_head.weight"])


@pytest.mark.parametrize("method", ["full", "partial", "lora"])
def test_bfloat16_is_computed_in_bfloat16_whatever_trains(
    method: HealMethod, tmp_path: Path
) -> None:
    base = save_tiny(build_tiny("llama", tied=True).bfloat16(), tmp_path / "base")
    seen: set[torch.dtype] = set()
    loaded = load(base, LOAD)
    loaded.layers[0].mlp.down_proj.register_forward_hook(
        lambda _, __, output: seen.add(output.dtype)
    )
    settings = replace(SETTINGS, method=method, rank=2)
    heal_checkpoint(loaded, counted(), settings, LOAD, tmp_path / "healed")
    assert seen == {torch.bfloat16}


def test_only_the_layers_that_are_named_and_the_head_change(tmp_path: Path) -> None:
    base = save_tiny(build_tiny("llama", tied=False), tmp_path / "base")
    settings = replace(SETTINGS, method="partial", layers="last:1,head")
    heal_checkpoint(load(base, LOAD), counted(), settings, LOAD, tmp_path / "healed")
    before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / "healed"))
    moved = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert moved == {name for name in after if ".layers.5." in name or name == "lm_head.weight"}


def test_low_rank_matrices_stay_on_the_layers_that_are_named(tmp_path: Path) -> None:
    base = save_tiny(build_tiny("llama"), tmp_path / "base")
    settings = replace(SETTINGS, method="lora", layers="1,4-5", rank=2)
    heal_checkpoint(load(base, LOAD), counted(), settings, LOAD, tmp_path / "healed")
    before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / "healed"))
    moved = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert {name.split(".")[2] for name in moved} == {"1", "4", "5"}
    assert len(moved) == 3 * 7


def test_low_rank_matrices_stay_on_the_modules_that_are_named(tmp_path: Path) -> None:
    base = save_tiny(build_tiny("llama"), tmp_path / "base")
    settings = replace(SETTINGS, method="lora", modules="mlp", layers="2,3", rank=2)
    heal_checkpoint(load(base, LOAD), counted(), settings, LOAD, tmp_path / "healed")
    before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / "healed"))
    moved = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert all(".mlp." in name for name in moved)
    assert len(moved) == 2 * 3
    with pytest.raises(SettingsError, match="--modules mlp is for lora"):
        heal_checkpoint(
            *(load(base, LOAD), counted(), replace(SETTINGS, modules="mlp"), LOAD),
            tmp_path / "other",
        )


def test_weights_train_in_float32_and_a_model_in_memory_is_as_before() -> None:
    model = build_tiny("llama").to(torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with opened(from_memory(model, None), Targets(frozenset({2}), head=False)) as weights:
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert all(".layers.2." in name for name in weights)
        with torch.no_grad():
            for weight in weights.values():
                weight.add_(1)
        trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
        assert trained == list(weights)
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_quantised_weights_are_refused() -> None:
    model = build_tiny("llama")
    model.is_quantized = True
    with (
        pytest.raises(SettingsError, match="choose --method qlora"),
        opened(from_memory(model, None), None),
    ):
        pass
