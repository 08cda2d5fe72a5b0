"""Removed layers merged into the one before them: differences of weights, added to its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthcut.architectures.names import LayerNames
from depthcut.checkpoint.folder import Checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import ArchitectureError
from depthcut.model.stored_weights import find_weight, read_weight
from depthcut.records import Block, layers_in_words
from depthcut.repairing.changes import Seen
from depthcut.repairing.layers import Layers
from depthcut.repairing.projections import stored_names

STRENGTHS = (1.0, 0.5, 0.25, 0.125)
"""That are tried; held-out text chooses."""


@dataclass(frozen=True)
class Merge:
    """All parameters of a layer, to which the differences of removed layers' are added."""

    layer: nn.Module
    path: str
    """Of the layer in the model."""
    stored: dict[str, Sequence[TensorEntry]]
    """By names in the model: where a tensor lies in the parent's files, and behind it those of the
    removed layers."""

    columns = 0
    watched = ()
    exact = False

    @property
    def own(self) -> dict[str, Tensor]:
        """The layer's tensors, by their names in the model."""
        named = self.layer.named_parameters(prefix=self.path)
        return {name: tensor.detach() for name, tensor in named}

    def seen(
        self, left: Tensor, target: Tensor, caught: Mapping[nn.Module, tuple[Tensor, Tensor]]
    ) -> Seen:
        """How far what leaves the layer is off."""
        return Seen(left.new_empty(len(left), 0), left, left, target)

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Of no columns."""
        return torch.empty(0, 0, dtype=torch.float64)

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """None: a matrix says nothing of them."""
        return {}

    def merged(self, strength: float) -> dict[str, Tensor]:
        """The tensors with differences of that strength, in the files' dtypes.

        Layer collapse of LaCo (Yang et al., arXiv:2402.11187), with k the layer before the block
        and j those of it: W_k + s * (sum over j of W_j - W_k). Theirs is s = 1.
        """
        found = {}
        for name, entries in self.stored.items():
            before, *others = (read_weight(entry) for entry in entries)
            own = before.double()
            added = sum((other.double() - own for other in others), torch.zeros_like(own))
            found[name] = (own + strength * added).to(before.dtype)
        return found


def find_merge(layers: Layers, parent: Checkpoint, block: Block) -> Merge:
    """The layer before a block, and where its tensors and those that are merged into it lie.

    Raises:
        ArchitectureError: The layers do not have the same tensors, or files hold them in another
            form than the model has them in memory.
    """
    loaded, into = layers.loaded, block[0] - 1
    names = LayerNames(parent.architecture.stacks)
    tensors: dict[int, dict[str, TensorEntry]] = {each: {} for each in range(into, block[1])}
    for name, entry in parent.tensors.items():
        if (layer := names.layer(name)) in tensors:
            tensors[layer][names.tail(name)] = entry
    for layer, its in tensors.items():
        if _shapes(its) != _shapes(tensors[into]):
            tail = min(dict(_shapes(its) ^ _shapes(tensors[into])))
            raise ArchitectureError(
                f"{loaded.facts.source}: layers {into} and {layer} do not have the same tensors "
                f"({tail}), so {layers_in_words([block])} cannot be merged into layer {into}; "
                "choose another --method, such as refit, or a plan that removes other layers"
            )
    layers.enter(into)
    module = loaded.layers[into]
    path = next(name for name, each in loaded.model.named_modules() if each is module)
    merge = Merge(module, path, {})
    for name, stored in stored_names(loaded, merge.own).items():
        tail, shape = names.tail(stored), merge.own[name].shape
        merge.stored[name] = [
            find_weight(parent, its[tail].name, shape) for its in tensors.values()
        ]
    return merge


def _shapes(tensors: Mapping[str, TensorEntry]) -> set[tuple[str, Sequence[int]]]:
    return {(tail, entry.shape) for tail, entry in tensors.items()}
