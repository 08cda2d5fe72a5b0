from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from depthcut.checkpoint.folder import open_checkpoint
from depthcut.healing.training.train import seeded
from depthcut.healing.weights.adapters import adapted, weight_deltas
from depthcut.model.loading import from_memory
from depthcut.model.stored_weights import add_to_weight, find_weight
from depthcut.settings import HealSettings
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

SETTINGS = HealSettings(rank=2)


@pytest.mark.parametrize("model_type", list(TINY_TYPES))
def test_merged_files_equal_the_adapters_on_top(model_type: str, tmp_path: Path) -> None:
    model = build_tiny(model_type)
    save_tiny(model, tmp_path, max_shard_size=200_000)
    checkpoint = open_checkpoint(tmp_path)
    ids = torch.arange(1, 40)[None]
    with seeded(0), adapted(from_memory(model, None), SETTINGS, None) as wrapped:
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.02)
            expected = wrapped(input_ids=ids).logits
        for name, delta in weight_deltas(wrapped):
            add_to_weight(find_weight(checkpoint, name, delta.shape), delta)
    merged = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        found, before = merged(input_ids=ids).logits, model(input_ids=ids).logits
    assert (before - expected).abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_the_tensor_changes_and_is_rounded_once(tmp_path: Path) -> None:
    save_tiny(build_tiny("llama").to(torch.bfloat16), tmp_path)
    name = "model.layers.2.mlp.up_proj.weight"
    mapped = load_file(tmp_path / "model.safetensors")  # shows what is written to the file
    before = {name: tensor.clone() for name, tensor in mapped.items()}
    delta = torch.randn(before[name].shape, generator=torch.Generator().manual_seed(0)) / 100
    add_to_weight(find_weight(open_checkpoint(tmp_path), name, delta.shape), delta)
    after = load_file(tmp_path / "model.safetensors")
    assert after[name].equal((before[name].float() + delta).bfloat16())
    assert all(after[other].equal(before[other]) for other in before if other != name)


def test_checkpoints_of_the_bare_decoder_are_known(tmp_path: Path) -> None:
    model = build_tiny("gpt2")
    save_tiny(model, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    with seeded(0), adapted(from_memory(model, None), SETTINGS, None) as wrapped:
        names = {
            find_weight(checkpoint, name, delta.shape).name
            for name, delta in weight_deltas(wrapped)
        }
    assert "h.0.attn.c_attn.weight" in names
    assert len(names) == 24
