"""Attention or MLP of a layer, silenced."""

import contextlib

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut.errors import ArchitectureError
from depthcut.model.loading import from_memory
from depthcut.model.sublayers import silencing
from depthcut.records import PARTS, LayerPart
from tests import every_type
from tests.slices import logits
from tests.tiny import TINY_TYPES, build_tiny


def states(model: PreTrainedModel) -> list[Tensor]:
    """What enters each layer, and what leaves the last, of a Llama."""
    seen: list[Tensor] = []
    layers = from_memory(model, None).layers
    hooks = [layer.register_forward_hook(lambda _, args, out: seen.extend((args[0], out)))
             for layer in layers]  # fmt: skip
    logits(model)
    for hook in hooks:
        hook.remove()
    return [*seen[::2], seen[-1]]


def test_a_silent_part_adds_nothing() -> None:
    model = build_tiny("llama")
    with silencing(from_memory(model, None)) as silence:
        silence({(2, "attention"), (2, "mlp"), (4, "mlp")})
        found = states(model)
    assert torch.equal(found[2], found[3])
    assert not torch.equal(found[4], found[5])
    layer = model.model.layers[4]
    layer.mlp.down_proj.weight.data.zero_()
    with silencing(from_memory(model, None)) as silence:
        silence({(2, "attention"), (2, "mlp")})
        assert torch.equal(states(model)[5], found[5])


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_both_parts_silent_are_the_layer_skipped(model_type: str) -> None:
    model = build_tiny(model_type)
    whole = logits(model)
    with silencing(from_memory(model, None)) as silence:
        for part in PARTS:
            silence({(3, part)})
            assert not torch.equal(logits(model), whole)
        silence({(3, "attention"), (3, "mlp")})
        silent = logits(model)
    layer = from_memory(model, None).layers[3]

    def pass_on(_: nn.Module, args: tuple[Tensor, ...], output: object) -> object:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    hook = layer.register_forward_hook(pass_on)
    assert torch.equal(logits(model), silent)
    hook.remove()
    assert torch.equal(logits(model), whole)


def test_all_is_restored_even_after_an_error() -> None:
    model = build_tiny("llama").train()
    whole = [dict(module.__dict__) for module in model.modules()]
    with contextlib.suppress(KeyError), silencing(from_memory(model, None)) as silence:
        silence({(0, "mlp")})
        raise KeyError
    assert model.training
    assert all(
        "forward" not in module.__dict__ and set(module.__dict__) == set(before)
        for module, before in zip(model.modules(), whole, strict=True)
    )


class Shifting(nn.Module):
    """A norm that makes something of nothing."""

    def forward(self, states: Tensor) -> Tensor:
        return states + 1


def test_a_norm_behind_a_part_that_adds_a_bias_is_refused() -> None:
    model = build_tiny("gemma2")
    model.model.layers[1].post_attention_layernorm = Shifting()
    with (
        pytest.raises(ArchitectureError, match="layer 1 changes the residual stream without them"),
        silencing(from_memory(model, None)),
    ):
        pass


@pytest.mark.parametrize(
    ("model_type", "changes", "why"),
    [
        ("bloom", {}, r"layer 0 changes .*: only whole layers can go"),  # adds inside the part
        ("opt", {"do_layer_norm_before": False}, "layer 0 changes"),  # norms the stream itself
        ("mamba", {}, "has none of norm, mixer as attention: one attention and one MLP"),
        ("falcon_h1", {}, r"has mamba and self_attn of .* as attention"),
        ("gemma4_text", {}, "layer 0 changes"),  # scales the stream
    ],
)
def test_layers_that_are_more_than_two_parts_are_refused(
    model_type: str, changes: dict[str, object], why: str
) -> None:
    model = every_type.build(model_type, **changes)
    with pytest.raises(ArchitectureError, match=why), silencing(from_memory(model, None)):
        pass


@pytest.mark.parametrize("part", PARTS)
def test_a_silent_part_costs_nothing(part: LayerPart) -> None:
    model = build_tiny("mixtral")
    ran: list[str] = []
    names = {"attention": "self_attn", "mlp": "mlp"}
    with silencing(from_memory(model, None)) as silence:
        for name, module in model.model.layers[1].named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda *_, name=name: ran.append(name))
        silence({(1, part)})
        logits(model)
    assert ran or part == "attention"
    assert not any(name.startswith(names[part]) for name in ran)
