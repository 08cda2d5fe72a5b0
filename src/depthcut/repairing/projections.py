"""The projections that end a layer's attention and MLP, where what they return is simply added."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from depthcut.architectures.sublayers import part_modules
from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel
from depthcut.records import LayerPart
from depthcut.repairing.changes import Seen
from depthcut.repairing.layers import Layers

_FAR = 2e-2
"""Of what is added for a trial: so far bfloat16 may be off."""


@dataclass(frozen=True)
class Projection:
    """A linear layer whose output is added to the residual stream as it is.

    Its weights are told as one matrix, (hidden, inner), with the bias as a last column where the
    module has one.
    """

    module: nn.Module
    name: str
    """As the model names it: model.layers.11.mlp.down_proj."""
    layer: int
    part: LayerPart

    @property
    def has_bias(self) -> bool:
        return self._bias is not None

    @property
    def columns(self) -> int:
        """Of its matrix: the numbers that it takes of each token, and one for the bias."""
        return int(self._weight.shape[0 if self._transposed else 1]) + self.has_bias

    @property
    def own(self) -> dict[str, Tensor]:
        """The module's tensors, by their names in the model."""
        leaves = ("weight", "bias") if self.has_bias else ("weight",)
        return {f"{self.name}.{leaf}": getattr(self.module, leaf).detach() for leaf in leaves}

    def inputs_of(self, given: Tensor) -> Tensor:
        """What it was given, (tokens, inner), as the matrix takes it: with ones for the bias."""
        if not self.has_bias:
            return given
        return torch.cat([given, given.new_ones(len(given), 1)], dim=1)

    def gives(self, given: Tensor) -> Tensor:
        """What the matrix makes of what the module is given."""
        weight = self._weight.T if self._transposed else self._weight
        return nn.functional.linear(given, weight, self._bias)

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """A matrix as the module's tensors, by their names in the model."""
        weight = matrix[:, :-1] if self.has_bias else matrix
        found = {f"{self.name}.weight": weight.T if self._transposed else weight}
        if self.has_bias:
            found[f"{self.name}.bias"] = matrix[:, -1]
        return found

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix that tensors by these names make, float64."""
        weight = tensors[f"{self.name}.weight"].double()
        weight = weight.T if self._transposed else weight
        if not self.has_bias:
            return weight
        return torch.cat([weight, tensors[f"{self.name}.bias"].double()[:, None]], dim=1)

    @property
    def _weight(self) -> Tensor:
        return cast(Tensor, self.module.weight)

    @property
    def _bias(self) -> Tensor | None:
        return cast(Tensor | None, self.module.bias)

    @property
    def _transposed(self) -> bool:
        return isinstance(self.module, Conv1D)


@dataclass(frozen=True)
class Joined:
    """Projections of one layer whose outputs are all added to the stream, told as one matrix.

    What they take stands side by side, and so do the columns of their matrices.
    """

    parts: tuple[Projection, ...]

    @property
    def columns(self) -> int:
        return sum(part.columns for part in self.parts)

    @property
    def own(self) -> dict[str, Tensor]:
        """The modules' tensors, by their names in the model."""
        return {name: tensor for part in self.parts for name, tensor in part.own.items()}

    @property
    def watched(self) -> tuple[nn.Module, ...]:
        """The modules."""
        return tuple(part.module for part in self.parts)

    @property
    def exact(self) -> bool:
        """Whether nothing in the layer follows: what the MLP takes hangs on the attention."""
        return [part.part for part in self.parts] == ["mlp"]

    def seen(
        self, left: Tensor, target: Tensor, caught: Mapping[nn.Module, tuple[Tensor, Tensor]]
    ) -> Seen:
        """What the projections take, side by side, and what they are added to."""
        given = [part.inputs_of(caught[part.module][0]) for part in self.parts]
        rest = left
        for part in self.parts:
            rest = rest - caught[part.module][1]
        return Seen(given[0] if len(given) == 1 else torch.cat(given, dim=1), rest, left, target)

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """A matrix as the modules' tensors, by their names in the model."""
        matrices = torch.split(matrix, [part.columns for part in self.parts], dim=1)
        found: dict[str, Tensor] = {}
        for part, its in zip(self.parts, matrices, strict=True):
            found |= part.tensors(its)
        return found

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix that tensors by these names make, float64."""
        return torch.cat([part.matrix(tensors) for part in self.parts], dim=1)


def stored_names(loaded: LoadedModel, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """How checkpoints name tensors, by their names in the model.

    Raises:
        ArchitectureError: transformers stores them in another form.
    """
    found: dict[str, str] = {}
    for name, here in tensors.items():
        stored = revert_weight_conversion(loaded.model, {name: here})
        shapes = [tuple(each.shape) for each in stored.values()]
        if shapes != [tuple(here.shape)]:
            raise ArchitectureError(
                f"{loaded.facts.source}: checkpoints hold {name} in another form, which cannot "
                "be repaired; heal the cut model instead (depthcut heal)"
            )
        found[name] = next(iter(stored))
    return found


def find_projections(layers: Layers, layer: int) -> dict[LayerPart, Projection]:
    """The linear layers whose output is added to the residual stream as it is, proved by trial.

    Those that end the attention and the MLP; of a mixture of experts only what all tokens pass
    through may be found.

    Raises:
        ArchitectureError: There is none: the outputs are normed or scaled before they are added,
            or the layer has no one attention and MLP.
    """
    loaded = layers.loaded
    layers.enter(layer)
    whole = loaded.layers[layer]
    names = {id(module): name for name, module in loaded.model.named_modules()}
    kind = f"layer {layer} of {loaded.facts.source} ({loaded.facts.model_type})"
    try:
        parts = part_modules(name for name, _ in whole.named_children())
    except ArchitectureError as error:
        raise ArchitectureError(
            f"{kind} cannot be repaired ({error}); heal the cut model instead (depthcut heal)"
        ) from error
    modules = {part: whole.get_submodule(name) for part, name in parts.items()}
    found: dict[LayerPart, Projection] = {}
    for part, module in modules.items():
        for each in _candidates(loaded, module):
            candidate = Projection(each, names[id(each)], layer, part)
            if _adds_up(layers, candidate, modules["mlp"] if part == "attention" else None):
                found[part] = candidate
                break
    if not found:
        raise ArchitectureError(
            f"{kind} ends neither its attention nor its MLP with a plain linear layer whose output "
            "is added to the residual stream as it is (experts, a norm or a factor stand between): "
            "such layers cannot be repaired; heal the cut model instead (depthcut heal)"
        )
    return found


def _candidates(loaded: LoadedModel, part: nn.Module) -> Iterator[nn.Module]:
    """Linear layers of an attention or MLP that give states, last first."""
    for module in reversed([*part.modules()]):
        if not isinstance(module, nn.Linear | Conv1D):
            continue
        weight = module.weight
        width = weight.shape[1 if isinstance(module, Conv1D) else 0]
        if width == loaded.facts.hidden_size and weight.is_floating_point() and not weight.is_meta:
            yield module


def _adds_up(layers: Layers, projection: Projection, later: nn.Module | None) -> bool:
    """Whether the projection gives W a, and what is added to it is added to the layer's output.

    Both are tried: a linear layer by its class may round what it takes, or be adapted. What the
    MLP adds depends on what the attention gave: as `later`, it is taken off the layer's output.
    """
    added: list[Tensor] = []
    plain: list[Tensor] = []
    gave: list[Tensor] = []
    behind: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)

    def add(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        plain.append(projection.gives(args[0]))
        gave.append(output)
        noise = torch.randn(output.shape, generator=generator).to(output)
        added.append(noise * output.abs().mean())
        return output + added[-1]

    def see_later(_: nn.Module, __: Any, output: Any) -> None:
        behind.append(output if isinstance(output, Tensor) else output[0])

    with contextlib.ExitStack() as stack:
        if later is not None:
            stack.callback(later.register_forward_hook(see_later).remove)
        ids = torch.tensor([[1, 0, 2]])
        left = [layers.run(ids, [projection.layer], head=False)]
        stack.callback(projection.module.register_forward_hook(add).remove)
        left.append(layers.run(ids, [projection.layer], head=False))
    if len(added) != 1 or added[0].numel() != left[0].numel():
        return False
    if later is not None and [each.numel() for each in behind] != [left[0].numel()] * 2:
        return False
    before, after = (
        state.double() - (behind[turn].double().reshape(state.shape) if behind else 0)
        for turn, state in enumerate(left)
    )
    expected = added[0].double().reshape(before.shape)
    return near(gave[0].double(), plain[0].double(), of=plain[0]) and (
        near(after - before, expected, of=left[0]) and bool(expected.any())
    )


def near(one: Tensor, other: Tensor, *, of: Tensor) -> bool:
    """Whether two are the same but for the rounding of a third, in whose dtype they were taken."""
    rounding = 2 * torch.finfo(of.dtype).eps * of.abs().amax()
    return bool((one - other).abs().amax() <= _FAR * other.abs().amax() + rounding)
