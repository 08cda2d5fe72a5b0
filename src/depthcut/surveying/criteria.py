"""What redundancy means: each criterion one function of the states of a token.

A new criterion is one function and one entry of CRITERIA. Light at import.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.measures import DepthPairs


@dataclass(frozen=True)
class Criterion:
    """A score of blocks or layers; low means redundant."""

    function: "Callable[[DepthPairs], Tensor]"
    """From tokens to scores, (tokens, entries) float64, entries in reading order."""
    scope: Literal["block", "layer"]
    """block: an entry for every block [start, stop); layer: one for every layer."""
    paper: str
    meaning: str


def angular(pairs: "DepthPairs") -> "Tensor":
    """arccos(cosine) / pi between what enters and what leaves each block, 0 same, 1 opposite."""
    return pairs.block_angles / math.pi


def block_influence(pairs: "DepthPairs") -> "Tensor":
    """1 - cosine between what enters and what leaves each layer, 0 same, 2 opposite."""
    return pairs.layer_squared_chords / 2


def magnitude(pairs: "DepthPairs") -> "Tensor":
    """Norm of what each layer adds, over the norm of what leaves it: 0 nothing added."""
    return pairs.layer_additions / pairs.norms[:, 1:]


CRITERIA: Mapping[str, Criterion] = {
    "angular": Criterion(
        angular,
        "block",
        "Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, "
        "arXiv:2403.17887",
        "angle between what enters and what leaves the block, as a share of a half turn: "
        "0 same direction, 1 opposite",
    ),
    "block-influence": Criterion(
        block_influence,
        "layer",
        "Men et al. 2024, ShortGPT, arXiv:2403.03853",
        "1 - mean cosine between what enters and what leaves the layer: 0 same, 2 opposite",
    ),
    "magnitude": Criterion(
        magnitude,
        "layer",
        "Relative magnitude, in Men et al. 2024, ShortGPT, arXiv:2403.03853",
        "norm of what the layer adds over the norm of what leaves it: 0 adds nothing",
    ),
}
"""By name, as plans ask for them."""
