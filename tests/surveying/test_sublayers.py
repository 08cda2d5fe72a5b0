"""Influence of attention and MLP, against sums made by hand from what the modules return."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from depthcut.errors import ArchitectureError, SettingsError
from depthcut.surveying.criteria import CRITERIA
from depthcut.sweeping.ways import asked_ways
from tests import every_type
from tests.surveying.surveys_for_tests import make_sequences, per_sequence, survey
from tests.tiny import build_tiny

BOTH = ["attention-influence", "mlp-influence"]


def plain(states: Tensor, attention: Tensor, layer: nn.Module) -> Tensor:
    return states + attention


def normed(states: Tensor, attention: Tensor, layer: nn.Module) -> Tensor:
    """As gemma2, which norms what attention returns."""
    with torch.no_grad():
        return states + layer.post_attention_layernorm(attention)


@pytest.mark.parametrize(
    ("model_type", "stack", "attention", "between"),
    [
        ("llama", "model.layers", "self_attn", plain),
        ("gpt2", "transformer.h", "attn", plain),
        ("gpt_neox", "gpt_neox.layers", "attention", plain),  # parts side by side
        ("gemma2", "model.layers", "self_attn", normed),
        ("mixtral", "model.layers", "self_attn", plain),
    ],
)
def test_influences_are_those_of_the_sums(
    model_type: str, stack: str, attention: str, between: Callable[..., Tensor]
) -> None:
    model, sequences = build_tiny(model_type), make_sequences((40, 7, 2))
    found = survey(model, sequences, criteria=BOTH, batch_size=2)
    layers = model.get_submodule(stack)
    for row, ids in enumerate(sequences.sequences):
        for index, (states, added, left) in enumerate(seen(model, ids, layers, attention)):
            middle = between(states, added, layers[index])
            for name, (before, after) in zip(BOTH, ((states, middle), (middle, left)), strict=True):
                scores = 1 - functional.cosine_similarity(before.double(), after.double(), dim=-1)
                for tokens, expected in (("all", scores.mean()), ("last", scores[-1])):
                    got = per_sequence(found.find(name, tokens))[row, index]  # type: ignore[arg-type]
                    assert float(got) == pytest.approx(float(expected), rel=1e-4, abs=1e-7)


def seen(
    model: PreTrainedModel, ids: Tensor, layers: nn.Module, attention: str
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each layer: what enters it, what its attention returns, what leaves it."""
    entered: list[Tensor] = []
    added: list[Tensor] = []
    left: list[Tensor] = []

    def first(output: object) -> Tensor:
        return (output if isinstance(output, Tensor) else output[0])[0]  # type: ignore[index]

    hooks = []
    for layer in layers.children():
        hooks += [
            layer.register_forward_pre_hook(lambda _, args: entered.append(args[0][0])),
            layer.get_submodule(attention).register_forward_hook(
                lambda _, __, output: added.append(first(output))
            ),
            layer.register_forward_hook(lambda _, __, output: left.append(first(output))),
        ]
    with torch.no_grad():
        model(ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return list(zip(entered, added, left, strict=True))


def test_one_part_alone_can_be_asked_for() -> None:
    model, sequences = build_tiny("llama"), make_sequences()
    both = survey(model, sequences, criteria=BOTH)
    for name in BOTH:
        alone = survey(model, sequences, criteria=[name])
        assert alone.find(name, "all") == both.find(name, "all")
        assert alone.find(name, "all").scope == CRITERIA[name].scope


def test_a_model_whose_layers_are_no_two_parts_is_refused_by_name() -> None:
    model = every_type.build("mamba")
    with pytest.raises(ArchitectureError, match="leave attention-influence out of --criteria"):
        survey(model, make_sequences(), criteria=["attention-influence"])


def test_a_sweep_of_whole_layers_refuses_them() -> None:
    with pytest.raises(SettingsError, match="mlp-influence ranks mlp alone, and a sweep compares"):
        asked_ways(["mlp-influence"], "kl")
