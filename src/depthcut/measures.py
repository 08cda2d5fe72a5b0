"""Tensor maths of the residual stream: how far depths are apart. No models, no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def angular_distance(before: Tensor, after: Tensor) -> Tensor:
    """Angle between residual-stream states, as a fraction of a half turn.

    The block score of Gromov et al. 2024 (arXiv:2403.17887), arccos(cosine) / pi.
    Computed as 2 * atan2(|u - v|, |u + v|) on unit vectors, in float64: the same angle,
    but arccos loses half its digits near 0, which is where redundant blocks are.

    Args:
        before: States entering the block, shape (..., hidden), any float dtype.
        after: States leaving it, same shape.

    Returns:
        Distances, shape (...), float32 (float64 for float64 states): 0 same direction,
        0.5 orthogonal, 1 opposite. A zero vector has no direction and counts as orthogonal.

    Raises:
        ValueError: The shapes differ; broadcasting would compare the wrong tokens.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"states of different shapes: {tuple(before.shape)} and {tuple(after.shape)}"
        )
    u, v = _unit(before), _unit(after)
    apart, together = (u - v).norm(dim=-1), (u + v).norm(dim=-1)
    distance = 2 / math.pi * torch.atan2(apart, together)
    distance = torch.where(apart + together > 0, distance, 0.5)  # neither has a direction
    exact = torch.float64 in (before.dtype, after.dtype)
    return distance if exact else distance.float()


def _unit(states: Tensor) -> Tensor:
    states = states.double()
    # Scaled by the largest entry first: squares of tiny entries would vanish.
    largest = states.abs().amax(dim=-1, keepdim=True)
    scaled = states / torch.where(largest > 0, largest, 1.0)
    norm = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0)


@dataclass(frozen=True)
class DepthPairs:
    """Every pair of depths of some tokens, by the chords between their directions.

    With unit vectors u_k, the squared chord |u_j - u_i|^2 is a sum over steps u_(k+1) - u_k:
    one small matrix product of the steps a token, summed up in float64, holds all blocks. As
    steps are taken before anything is squared, small angles keep their digits in float32
    already (1e-6 relative at 1e-3 rad), which a matrix product of the states would not leave.
    """

    norms: Tensor
    """Euclidean norm of each state, (tokens, depths)."""
    squared_chords: Tensor
    """(tokens, depths, depths) float64: 0 same direction, 2 orthogonal, 4 opposite. A zero
    vector has no direction and counts as orthogonal to all."""

    @classmethod
    def of(cls, states: Sequence[Tensor]) -> "DepthPairs":
        """Of the states at each depth, (tokens, hidden) each, any float dtype.

        Half precision is worked on in float32, where such states are exact; the rest in float64.
        """
        stacked = torch.stack(tuple(states), dim=1)
        if stacked.device.type == "mps":  # no float64 there
            stacked = stacked.cpu()
        half = stacked.dtype in (torch.bfloat16, torch.float16)
        stacked = stacked.float() if half else stacked.double()
        norms = torch.linalg.vector_norm(stacked, dim=-1)
        unit = stacked.div_(torch.where(norms > 0, norms, 1)[..., None])  # a copy since stack
        tokens, depths, hidden = unit.shape
        # Rows of zeros fill the matrix up to what kernels like.
        steps = unit.new_empty(tokens, -(-(depths - 1) // 16) * 16, hidden)
        steps[:, depths - 1 :] = 0
        torch.sub(unit[:, 1:], unit[:, :-1], out=steps[:, : depths - 1])
        products = torch.bmm(steps, steps.mT)[:, : depths - 1, : depths - 1].double()
        sums = products.new_zeros(tokens, depths, depths)
        torch.cumsum(products.cumsum(dim=1), dim=2, out=sums[:, 1:, 1:])
        own = sums.diagonal(dim1=1, dim2=2) + (norms == 0)
        chords = own[:, :, None] + own[:, None, :] - 2 * sums
        return cls(norms, chords.clamp_(0, 4))

    @cached_property
    def block_squared_chords(self) -> Tensor:
        """Those between what enters and what leaves each block, (tokens, blocks).

        Blocks in reading order: [0, 1), [0, 2) … [0, L), [1, 2) …
        """
        depths = self.norms.shape[-1]
        start, stop = self._block_ends
        return self.squared_chords.flatten(1).index_select(1, start * depths + stop)

    @cached_property
    def block_angles(self) -> Tensor:
        """Between what enters and what leaves each block, (tokens, blocks), radians, 0 to pi."""
        return self.block_squared_chords.sqrt().div_(2).arcsin_().mul_(2)

    @cached_property
    def block_changes(self) -> Tensor:
        """Euclidean norm of what each block adds, over that of what leaves it, (tokens, blocks)."""
        start, stop = self._block_ends
        norms = self.norms.double()
        before, after = norms[:, start], norms[:, stop]
        return _third_side(before, after, self.block_squared_chords) / after

    @cached_property
    def layer_squared_chords(self) -> Tensor:
        """Those between what enters and what leaves each layer, (tokens, layers)."""
        return self.squared_chords.diagonal(1, dim1=1, dim2=2)

    @cached_property
    def layer_additions(self) -> Tensor:
        """Euclidean norm of what each layer adds to the stream, (tokens, layers)."""
        norms = self.norms.double()
        return _third_side(norms[:, :-1], norms[:, 1:], self.layer_squared_chords)

    @cached_property
    def _block_ends(self) -> tuple[Tensor, Tensor]:
        depths = self.norms.shape[-1]
        start, stop = torch.triu_indices(depths, depths, 1, device=self.norms.device)
        return start, stop


def _third_side(first: Tensor, second: Tensor, squared_chords: Tensor) -> Tensor:
    """Length of the difference of two vectors, by the law of cosines as small angles survive it."""
    return ((second - first) ** 2 + first * second * squared_chords).sqrt()


_SUMMED_AT_ONCE = 16 << 20
"""Entries of large tensors; each takes a few temporary bytes."""


def absolute_sum(values: Tensor, factors: Tensor | None = None) -> Tensor:
    """Sum of |values|, or of |values x factors|, added up in float64.

    Args:
        values: Any shape, any float dtype.
        factors: The same shape.

    Returns:
        Shape (), float64 (float32 where the device has no float64).
    """
    precise = torch.float32 if values.device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=precise, device=values.device)
    flat, others = values.flatten(), None if factors is None else factors.flatten()
    for start in range(0, len(flat), _SUMMED_AT_ONCE):
        some = slice(start, start + _SUMMED_AT_ONCE)
        part = flat[some] if flat.dtype == torch.float64 else flat[some].float()
        if others is not None:
            part = part * others[some]
        total += torch.linalg.vector_norm(part, 1, dtype=precise)
    return total


_GRAM_BYTES = 64 << 20
"""Of all depths' Gram matrices that exist at once."""


def centred_alignments(states: Sequence[Tensor]) -> Tensor:
    """Linear CKA between all pairs of depths of one sequence.

    Kornblith et al. 2019 (arXiv:1905.00414), with the unbiased estimator of HSIC as in Nguyen et
    al. 2020 (arXiv:2010.15327), since a sequence has few tokens against its width: the biased
    one is near 1 for states that have nothing in common.

    Args:
        states: At each depth, (tokens, hidden), any float dtype; at least 4 tokens.

    Returns:
        (depths, depths) float64: 1 the same up to rotation, scale and shift, 0 unrelated; a
        little below 0 by chance. States that are all equal are unrelated to any.

    Raises:
        ValueError: Fewer than 4 tokens, for which the estimator is not defined.
    """
    tokens = len(states[0])
    if tokens < 4:
        raise ValueError(f"{tokens} tokens: CKA needs at least 4")
    device = torch.device("cpu") if states[0].device.type == "mps" else states[0].device
    centred = torch.stack([state.to(device).double() for state in states])
    centred -= centred.mean(dim=1, keepdim=True)  # changes nothing but the rounding
    depths = len(centred)
    products = centred.new_zeros(depths, depths)
    sums = centred.new_empty(depths, tokens)
    rows = max(1, _GRAM_BYTES // (8 * depths * tokens))
    for first in range(0, tokens, rows):
        some = slice(first, first + rows)
        grams = centred[:, some] @ centred.mT
        grams.diagonal(first, dim1=1, dim2=2).zero_()
        sums[:, some] = grams.sum(dim=2)
        flat = grams.flatten(1)
        products += flat @ flat.T
    totals = sums.sum(dim=1)
    products -= 2 / (tokens - 2) * (sums @ sums.T)
    products += totals[:, None] * totals / ((tokens - 1) * (tokens - 2))
    own = products.diagonal().clamp(min=0).sqrt()
    scale = own[:, None] * own
    return torch.where(scale > 0, products / torch.where(scale > 0, scale, 1.0), 0.0)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of observations and its standard error; 0 where there is one only.

    Args:
        values: One each, shape (observations,).
    """
    values = values.double()
    count = len(values)
    error = (values.std() / math.sqrt(count)).item() if count > 1 else 0.0
    return values.mean().item(), error
