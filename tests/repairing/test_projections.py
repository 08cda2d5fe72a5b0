import pytest
import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel, from_memory
from depthcut.repairing.projections import last_projection
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_layer_is_known_by_what_it_does(dtype: torch.dtype) -> None:
    loaded = ending_with(Plain)
    loaded.model.to(dtype)
    found = last_projection(loaded, 1)
    assert (found.name, found.layer, found.inner) == ("model.layers.1.mlp.down_proj", 1, 64)
    with pytest.raises(ArchitectureError, match="does not end with a plain linear layer"):
        last_projection(ending_with(Rounding), 1)


def test_a_shared_expert_that_all_tokens_pass_ends_a_mixture() -> None:
    from tests.every_type import build

    loaded = from_memory(build("deepseek_v3").eval(), None)
    found = last_projection(loaded, 5)
    assert found.name == "model.layers.5.mlp.shared_experts.down_proj"
