"""What redundancy means: each criterion one function, in one table.

A new criterion is one function and one entry of CRITERIA. Light at import.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from depthcut.errors import SettingsError, nearest
from depthcut.records import Block, Scope
from depthcut.settings import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from depthcut.measures import DepthPairs
    from depthcut.model.skipping import Losses

Needs = Literal[
    "pairs",
    "centred pairs",
    "sequence",
    "linear maps",
    "full batches",
    "weights",
    "gradients",
    "losses",
    "part",
]
"""What a criterion's function is given, and what it returns; entries in reading order, float64.

pairs            DepthPairs of some tokens -> (tokens, entries)
centred pairs    the same of states less the mean of their sequence at each depth
sequence         the states of a whole sequence at each depth, (tokens, hidden) -> (entries,)
linear maps      of each block: what the best map makes of what enters it, and what leaves it,
                 (tokens, hidden) both -> (tokens,)
full batches     of each block: what enters and what leaves it at the last token of each sequence
                 of a full batch, (batch, hidden) both, in the model's dtype -> (batch,)
weights          one tensor of a layer -> a number; the layer's score is their sum
gradients        one tensor of a layer, and its gradient -> a number; the same
losses           what each sequence of a batch says of the model without a block, of the whole
                 model, and at which tokens, Losses both -> (batch,), in nats
part             DepthPairs of what enters and what leaves the attention or the MLP of a layer, its
                 sum with the residual stream -> (tokens, 1)
"""


@dataclass(frozen=True)
class Criterion:
    """A score of blocks or layers; low means redundant."""

    function: "Callable[..., Tensor]"
    """As `needs` says."""
    needs: Needs
    scope: Scope
    """block: an entry for every block [start, stop); layer, or its attention or MLP alone: one
    for every layer."""
    paper: str
    meaning: str
    tokens: tuple[Tokens, ...] = ("last", "all")
    """Where it is defined."""
    least_tokens: int = 1
    """Of a sequence; shorter ones say nothing and are passed over."""

    @property
    def costly(self) -> bool:
        """Whether it scores blocks up to a largest one only."""
        return self.needs in ("linear maps", "losses")

    @property
    def first(self) -> int:
        """The first layer that a scored block may hold."""
        return 1 if self.needs == "full batches" else 0


def angular(pairs: "DepthPairs") -> "Tensor":
    """arccos(cosine) / pi between what enters and what leaves each block, 0 same, 1 opposite."""
    return pairs.block_angles / math.pi


def cosine(pairs: "DepthPairs") -> "Tensor":
    """1 - cosine between what enters and what leaves each block, 0 same, 2 opposite."""
    return pairs.block_squared_chords / 2


def euclidean(pairs: "DepthPairs") -> "Tensor":
    """Norm of what each block adds, over the norm of what leaves it: 0 nothing added."""
    return pairs.block_changes


def pruneme(before: "Tensor", after: "Tensor") -> "Tensor":
    """arccos(cosine) / pi as PruneMe computes it: in the states' dtype, small angles lost."""
    from torch.linalg import vector_norm

    unit, other = (each / vector_norm(each, dim=-1, keepdim=True) for each in (before, after))
    turns: Tensor = (unit * other).sum(dim=-1).clamp(min=-1, max=1).arccos() / math.pi
    return turns


def cka(states: "Sequence[Tensor]") -> "Tensor":
    """1 - linear CKA between what enters and what leaves each block, 0 same, 1 unrelated."""
    from torch import triu_indices

    from depthcut.measures import centred_alignments

    alignments = centred_alignments(states)
    start, stop = triu_indices(len(alignments), len(alignments), 1)
    return 1 - alignments[start, stop]


def block_influence(pairs: "DepthPairs") -> "Tensor":
    """1 - cosine between what enters and what leaves each layer, 0 same, 2 opposite."""
    return pairs.layer_squared_chords / 2


def relative_magnitude(pairs: "DepthPairs") -> "Tensor":
    """Norm of what each layer adds, over the norm of what leaves it: 0 nothing added."""
    return pairs.layer_additions / pairs.norms[:, 1:]


def linear_map(predicted: "Tensor", after: "Tensor") -> "Tensor":
    """Norm of what the best linear map leaves, over the norm of what leaves each block."""
    from torch.linalg import vector_norm

    norms: Tensor = vector_norm(after, dim=-1)
    errors: Tensor = vector_norm(after - predicted, dim=-1)
    return errors / norms.where(norms > 0, 1)


def weight_magnitude(weight: "Tensor") -> "Tensor":
    """Sum of a tensor's absolute values."""
    from depthcut.measures import absolute_sum

    return absolute_sum(weight)


def taylor(weight: "Tensor", gradient: "Tensor") -> "Tensor":
    """Sum of |weight x gradient| over a tensor: how the loss changes without each weight."""
    from depthcut.measures import absolute_sum

    return absolute_sum(weight, gradient)


def loss_block(cut: "Losses", whole: "Losses", tokens: Tokens) -> "Tensor":
    """Increase of the mean next-token loss when the block is skipped."""
    return cut.loss - whole.loss


def kl_block(cut: "Losses", whole: "Losses", tokens: Tokens) -> "Tensor":
    """KL(whole model || without the block) of the next-token distributions: 0 the same."""
    return cut.last_divergence if tokens == "last" else cut.divergence


CRITERIA: Mapping[str, Criterion] = {
    "angular": Criterion(
        angular,
        "pairs",
        "block",
        "Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, "
        "arXiv:2403.17887",
        "angle between what enters and what leaves the block, as a share of a half turn: "
        "0 same direction, 1 opposite",
    ),
    "cosine": Criterion(
        cosine,
        "pairs",
        "block",
        "Chen et al. 2024, LLM-Streamline, arXiv:2403.19135",
        "1 - cosine between what enters and what leaves the block: 0 same direction, 2 opposite",
    ),
    "cosine-centred": Criterion(
        cosine,
        "centred pairs",
        "block",
        "the cosine of LLM-Streamline, arXiv:2403.19135, less the common direction of all states "
        "that Ethayarajh 2019, arXiv:1909.00512, describes",
        "the same once the mean state of the sequence is taken away at each depth, which is "
        "common to all tokens and hides what changes",
    ),
    "euclidean": Criterion(
        euclidean,
        "pairs",
        "block",
        "Relative magnitude, in Men et al. 2024, ShortGPT, arXiv:2403.03853, of blocks",
        "norm of what the block adds over the norm of what leaves it: 0 adds nothing",
    ),
    "cka": Criterion(
        cka,
        "sequence",
        "block",
        "Kornblith et al. 2019, arXiv:1905.00414; unbiased as in Nguyen et al. 2020, "
        "arXiv:2010.15327",
        "1 - linear CKA between what enters and what leaves the block: 0 the tokens lie to each "
        "other as before, 1 unrelated",
        tokens=("all",),
        least_tokens=4,
    ),
    "linear-map": Criterion(
        linear_map,
        "linear maps",
        "block",
        "after Shopkhoev et al. 2025, ReplaceMe, arXiv:2505.02819",
        "what the best linear map from what enters the block to what leaves it does not explain, "
        "on sequences that the map was not fitted on, over the norm of what leaves it: 0 linear",
    ),
    "pruneme": Criterion(
        pruneme,
        "full batches",
        "block",
        "PruneMe, github.com/arcee-ai/PruneMe, for Gromov et al. 2024, arXiv:2403.17887",
        "the angular distance at the last token as PruneMe computes and averages it: no block "
        "starts at layer 0, the last state is behind the final norm",
        tokens=("last",),
    ),
    "block-influence": Criterion(
        block_influence,
        "pairs",
        "layer",
        "Men et al. 2024, ShortGPT, arXiv:2403.03853",
        "1 - mean cosine between what enters and what leaves the layer: 0 same, 2 opposite",
    ),
    "relative-magnitude": Criterion(
        relative_magnitude,
        "pairs",
        "layer",
        "Relative magnitude, in Men et al. 2024, ShortGPT, arXiv:2403.03853",
        "norm of what the layer adds over the norm of what leaves it: 0 adds nothing",
    ),
    "attention-influence": Criterion(
        block_influence,
        "part",
        "attention",
        "He et al. 2024, LLM-Drop, arXiv:2406.15786",
        "1 - mean cosine between what enters the attention and its sum with the residual stream: "
        "0 same, 2 opposite",
    ),
    "mlp-influence": Criterion(
        block_influence,
        "part",
        "mlp",
        "He et al. 2024, LLM-Drop, arXiv:2406.15786",
        "1 - mean cosine between what enters the MLP and its sum with the residual stream: 0 same, "
        "2 opposite",
    ),
    "weight-magnitude": Criterion(
        weight_magnitude,
        "weights",
        "layer",
        "Magnitude, in Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834",
        "sum of the absolute values of the layer's weights, whatever the text: 0 no weights",
        tokens=("all",),
    ),
    "taylor": Criterion(
        taylor,
        "gradients",
        "layer",
        "Taylor, in Kim et al. 2024, Shortened LLaMA, arXiv:2402.02834",
        "sum of |weight x gradient of the next-token loss| over the layer's weights, in nats: 0 "
        "no weight matters, to first order",
        tokens=("all",),
    ),
    "loss-block": Criterion(
        loss_block,
        "losses",
        "block",
        "Song et al. 2024, SLEB, arXiv:2402.09025, and Perplexity in Kim et al. 2024, Shortened "
        "LLaMA, arXiv:2402.02834, of blocks",
        "increase of the next-token loss, in nats, when the block is skipped: 0 no loss",
        tokens=("all",),
    ),
    "kl-block": Criterion(
        kl_block,
        "losses",
        "block",
        "the divergence of Sieberling et al. 2024, EvoPress, arXiv:2410.14649, of blocks",
        "KL divergence from the model's next-token predictions, in nats, when the block is "
        "skipped: 0 the same predictions",
    ),
}
"""By name, as surveys and plans ask for them."""


def chosen(names: Iterable[str]) -> dict[str, Criterion]:
    """The criteria of these names, in the table's order; "all" is every one.

    Raises:
        SettingsError: No such criterion, or none asked for.
    """
    asked = set(names)
    if unknown := sorted(asked - {*CRITERIA, "all"}):
        raise SettingsError(
            f"no criterion {unknown[0]!r}{nearest(unknown[0], CRITERIA)}: choose from "
            f"{', '.join(CRITERIA)}, or all"
        )
    if not asked:
        raise SettingsError(f"no criteria: choose from {', '.join(CRITERIA)}, or all")
    return {name: each for name, each in CRITERIA.items() if name in asked or "all" in asked}


def row_widths(criterion: Criterion, layers: int, largest: int) -> tuple[int, ...]:
    """How many entries a criterion has for each start: blocks of 1, 2 … layers, or the layer."""
    if criterion.scope != "block":
        return (1,) * layers
    most = largest if criterion.costly else layers
    return tuple(
        min(layers - start, most) if start >= criterion.first else 0 for start in range(layers)
    )


def blocks_up_to(layers: int, largest: int) -> list[Block]:
    """All blocks of at most so many layers, in reading order."""
    return [
        (start, stop)
        for start in range(layers)
        for stop in range(start + 1, min(start + largest, layers) + 1)
    ]
