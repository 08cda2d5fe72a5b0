import pytest
import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.records import LayerPart
from depthcut.repairing.layers import layers_in_memory
from depthcut.repairing.projections import Projection, find_projections
from tests.tiny import build_tiny


class Plain(nn.Linear):
    """As some models' own linear layers: another class, the same sums."""


class Rounding(nn.Linear):
    """As layers that quantise what they take."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.round(input))


def ending_with(kind: type[nn.Linear]) -> LoadedModel:
    model = build_tiny("llama")
    mlp = model.model.layers[1].mlp
    made = kind(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)
    made.weight = mlp.down_proj.weight
    mlp.down_proj = made
    return from_memory(model, None)


def projections(loaded: LoadedModel, layer: int) -> dict[LayerPart, Projection]:
    with layers_in_memory(loaded) as layers:
        return find_projections(layers, layer)


def names_of(loaded: LoadedModel, layer: int) -> dict[str, str]:
    return {part: found.name for part, found in projections(loaded, layer).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_known_by_what_it_does(dtype: torch.dtype) -> None:
    attention = {"attention": "model.layers.1.self_attn.o_proj"}
    loaded = ending_with(Plain)
    loaded.model.to(dtype)
    assert names_of(loaded, 1) == {**attention, "mlp": "model.layers.1.mlp.down_proj"}
    assert projections(loaded, 1)["mlp"].columns == 64
    assert names_of(ending_with(Rounding), 1) == attention


def test_of_a_mixture_it_is_what_all_tokens_pass() -> None:
    from tests.every_type import build

    shared = from_memory(build("deepseek_v3").eval(), None)
    assert names_of(shared, 5)["mlp"] == "model.layers.5.mlp.shared_experts.down_proj"
    experts = from_memory(build_tiny("mixtral"), None)
    assert names_of(experts, 1) == {"attention": "model.layers.1.self_attn.o_proj"}


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_what_is_normed_before_it_is_added_is_refused(model_type: str) -> None:
    loaded = from_memory(build_tiny(model_type), None)
    with pytest.raises(ArchitectureError, match=r"layer 1 .* ends neither .* \(depthcut heal\)"):
        projections(loaded, 1)
