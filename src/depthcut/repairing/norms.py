"""The norm that a layer reads the residual stream by, where its gain is plain."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from depthcut.errors import ArchitectureError
from depthcut.repairing.changes import Seen
from depthcut.repairing.layers import Layers
from depthcut.repairing.projections import near


@dataclass(frozen=True)
class Gain:
    """The gain w of a norm that gives w * x (+ b), with x the normed state.

    Told as a matrix it is diagonal. What is seen is what the norm gives.
    """

    module: nn.Module
    name: str
    """As the model names it: model.layers.19.input_layernorm."""

    exact = True

    @property
    def own(self) -> dict[str, Tensor]:
        """The gain, by its name in the model."""
        return {f"{self.name}.weight": self._weight.detach()}

    @property
    def columns(self) -> int:
        """The hidden size."""
        return len(self._weight)

    @property
    def watched(self) -> tuple[nn.Module, ...]:
        """The norm."""
        return (self.module,)

    def seen(
        self, left: Tensor, target: Tensor, caught: Mapping[nn.Module, tuple[Tensor, Tensor]]
    ) -> Seen:
        """What it takes, normed, and what it would give in the untouched model."""
        took, _ = caught[self.module]
        given, now = self.plain(took), self.gives(took)
        return Seen(given, now - given * self._weight.to(given), now, self.gives(target))

    def plain(self, states: Tensor) -> Tensor:
        """What the norm gives with a gain of 1 and no bias."""
        return self._with(torch.ones_like(self._weight), states, bias=False)

    def gives(self, states: Tensor, gain: Tensor | None = None) -> Tensor:
        """What it gives, perhaps with another gain."""
        return self._with(self._weight if gain is None else gain, states, bias=True)

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The gain as a diagonal matrix, float64."""
        return torch.diag(tensors[f"{self.name}.weight"].double())

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """The diagonal."""
        return {f"{self.name}.weight": matrix.diagonal()}

    def _with(self, gain: Tensor, states: Tensor, *, bias: bool) -> Tensor:
        tensors = {"weight": gain.to(states)}
        if (own := getattr(self.module, "bias", None)) is not None:
            tensors["bias"] = own.to(states) if bias else torch.zeros_like(tensors["weight"])
        return cast(Tensor, functional_call(self.module, tensors, (states,)))

    @property
    def _weight(self) -> Tensor:
        return cast(Tensor, self.module.weight)


def find_norm(layers: Layers, layer: int) -> Gain:
    """The norm that a layer reads the residual stream by, proved by trial.

    It is the first that takes what enters the layer (attention and MLP that run side by side may
    have one each).

    Raises:
        ArchitectureError: There is none, or its weight is no plain gain (it multiplies by 1 + w).
    """
    loaded = layers.loaded
    layers.enter(layer)
    width = loaded.facts.hidden_size
    generator = torch.Generator().manual_seed(0)
    entering = torch.randn(1, 3, width, generator=generator).to(loaded.device, loaded.model.dtype)
    found: list[tuple[nn.Module, Tensor]] = []

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        states = [each for each in (*args[:1], output) if isinstance(each, Tensor)]
        if [each.numel() for each in states] != [entering.numel()] * 2:
            return
        took, gave = (each.reshape(entering.shape) for each in states)
        if torch.equal(took, entering):
            found.append((module, gave))

    with contextlib.ExitStack() as stack:
        for module in loaded.layers[layer].modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and weight.shape == (width,):
                stack.callback(module.register_forward_hook(see).remove)
        with contextlib.suppress(RuntimeError):  # it takes something else than plain states
            layers.run(torch.tensor([[1, 0, 2]]), [layer], entering=entering, head=False)
    names = {id(module): name for name, module in loaded.model.named_modules()}
    for module, gave in found[:1]:
        gain = Gain(module, names[id(module)])
        if _is_plain(gain, entering, gave):
            return gain
    raise ArchitectureError(
        f"layer {layer} of {loaded.facts.source} ({loaded.facts.model_type}) reads the residual "
        "stream by no norm that is seen to multiply by its weight (there is none, or it multiplies "
        "by 1 + weight): norm cannot repair it; choose another --method, such as refit"
    )


def _is_plain(gain: Gain, states: Tensor, gave: Tensor) -> bool:
    """Whether the norm gives w * x (+ b): with its own gain, and with another."""
    own = gain.own[f"{gain.name}.weight"]
    generator = torch.Generator().manual_seed(0)
    other = torch.randn(own.shape, generator=generator).to(own)
    plain, bias = gain.plain(states), gave - gain.plain(states) * own
    return near(bias, bias[:1, :1].expand_as(bias), of=gave) and near(
        gain.gives(states, other), plain * other + bias, of=gave
    )
