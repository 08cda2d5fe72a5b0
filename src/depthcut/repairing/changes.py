"""What a repair may change in a layer, and what a pass says of it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Seen(NamedTuple):
    """What a batch says of a change: a row for each token, float32 or float64."""

    given: Tensor
    """a: what its matrix takes; of no columns where no matrix is looked for."""
    rest: Tensor
    """m: what its matrix's outputs are added to."""
    now: Tensor
    """What is there with the tensors as they are."""
    target: Tensor
    """h: what is there in the untouched model."""


class Change(Protocol):
    """Tensors of one layer that make up for a removed block, told as one matrix."""

    @property
    def own(self) -> dict[str, Tensor]:
        """They themselves, by their names in the model."""

    @property
    def columns(self) -> int:
        """Of the matrix; 0: none is looked for."""

    @property
    def watched(self) -> Sequence[nn.Module]:
        """Modules whose inputs and outputs say something of it."""

    @property
    def exact(self) -> bool:
        """Whether the matrix says what will be there: nothing that is seen follows it."""

    def seen(
        self, left: Tensor, target: Tensor, caught: Mapping[nn.Module, tuple[Tensor, Tensor]]
    ) -> Seen:
        """What a pass says of it.

        Args:
            left: The states that left the layer, (tokens, hidden).
            target: The untouched model's where they should lead, (tokens, hidden).
            caught: What each watched module took and gave, (tokens, its width).
        """

    def matrix(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The matrix that tensors by their names in the model make, (hidden, columns), float64."""

    def tensors(self, matrix: Tensor) -> dict[str, Tensor]:
        """A matrix as tensors, by their names in the model."""
