"""Tensor maths of the residual stream: angles, inner products. No models, no files."""

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
class InnerProducts:
    """Every pair of depths of some tokens, by their inner products in float64.

    One small matrix product a token holds all norms, angles and distances. In float64 the
    products of states are exact to 1e-16, so an angle of 1e-4 keeps eight digits (in
    float32 it would keep none).
    """

    values: Tensor
    """(tokens, depths, depths) float64."""

    @classmethod
    def of(cls, states: Sequence[Tensor]) -> "InnerProducts":
        """Of the states at each depth, (tokens, hidden) each, any float dtype, any devices."""
        device = states[0].device
        # Apple GPUs have no float64.
        place = torch.device("cpu") if device.type == "mps" else device
        stacked = torch.stack([state.to(place) for state in states], dim=1).double()
        return cls(torch.bmm(stacked, stacked.mT))

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean norms, (tokens, depths)."""
        return self.values.diagonal(dim1=1, dim2=2).sqrt()

    @cached_property
    def block_cosines(self) -> Tensor:
        """Cosine between what enters and what leaves each block, (tokens, blocks), -1 to 1.

        Blocks in reading order: [0, 1), [0, 2) … [0, L), [1, 2) … A zero vector counts as
        orthogonal to everything.
        """
        depths = self.values.shape[-1]
        start, stop = torch.triu_indices(depths, depths, 1, device=self.values.device)
        products = self.values.flatten(1).index_select(1, start * depths + stop)
        norms = self.norms.clamp(min=torch.finfo(torch.float64).tiny)
        cosines = products / norms.index_select(1, start) / norms.index_select(1, stop)
        return cosines.clamp_(-1, 1)

    @cached_property
    def layer_cosines(self) -> Tensor:
        """The same of single layers, (tokens, layers)."""
        norms = self.norms.clamp(min=torch.finfo(torch.float64).tiny)
        products = self.values.diagonal(1, dim1=1, dim2=2)
        return (products / norms[:, :-1] / norms[:, 1:]).clamp_(-1, 1)

    @cached_property
    def layer_distances(self) -> Tensor:
        """Euclidean norm of what each layer adds to the stream, (tokens, layers)."""
        squares = self.values.diagonal(dim1=1, dim2=2)
        products = self.values.diagonal(1, dim1=1, dim2=2)
        return (squares[:, :-1] + squares[:, 1:] - 2 * products).clamp(min=0).sqrt()
