"""Pairs of layers that cost more, or less, together: a quadratic form, and its least values."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from depthcut.searching.asked import Asked
from depthcut.searching.trials import Removed, Trials

_MOST_ENUMERATED = 1 << 21
_CHUNK = 1 << 17
_CHAINS = 256
_SWEEPS = 60
_COLDEST = 1e-3
"""Of the hottest, in units of the spread of energies."""


def ising(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """The least energies of a quadratic form in what is removed, measured for real.

    After block removal as constrained binary optimisation (Jansen et al. 2026, arXiv:2602.00161):
    with z = 1 for each removed layer, the objective is expanded to second order in gates on what
    layers add, and the form is minimised with the number of removed layers fixed. Here the second
    order is that of the divergence, by random directions instead of labels, and the `shortlist`
    least energies are measured; the best of them is the choice.
    """
    gradients = trials.gate_gradients(
        trials.batches, directions=asked.settings.gradients, seed=asked.settings.seed
    )
    fields, couplings = quadratic_form(gradients, asked.settings.objective)
    trials.start_from(())
    for count in asked.counts:
        yield trials.best(
            lowest_energies(
                fields,
                couplings,
                asked.free,
                count,
                most=asked.settings.shortlist,
                seed=asked.settings.seed,
            )
        )


def quadratic_form(gradients: Tensor, objective: str) -> tuple[Tensor, Tensor]:
    """Of the objective by removed layers: fields (layers,) and couplings (layers, layers)."""
    by_loss, random = gradients[:, 0], gradients[:, 1:].flatten(0, 1)
    couplings = random.T @ random / (2 * len(random))
    # Removing is the opposite of opening a gate; the divergence has no slope where all are open.
    fields = -by_loss.mean(0) if objective == "loss" else torch.zeros_like(couplings[0])
    return fields, couplings


def lowest_energies(
    fields: Tensor,
    couplings: Tensor,
    free: Sequence[int],
    count: int,
    *,
    most: int,
    seed: int = 0,
) -> list[Removed]:
    """The choices of `count` of the free layers with the least energies, best first.

    Energy: the sum of fields and of couplings over all ordered pairs of removed layers, each layer
    with itself included. All choices are looked at if there are at most two million, else those
    that simulated annealing finds, each brought down to where no exchange of two layers helps.

    Args:
        fields: (layers,) float64.
        couplings: (layers, layers) float64, symmetric.
        free: Layers that may be removed.
        count: How many are.
        most: How many choices.
        seed: Of the annealing.
    """
    places = torch.tensor(free)
    own = fields[places] + couplings[places, places]
    pairs = couplings[places][:, places].clone()
    pairs.fill_diagonal_(0.0)
    if math.comb(len(free), count) <= _MOST_ENUMERATED:
        chosen = _enumerated(own, pairs, count, most)
    else:
        chosen = _annealed(own, pairs, count, most, seed)
    return [tuple(sorted(free[place] for place in row)) for row in chosen.tolist()]


def _energies(own: Tensor, pairs: Tensor, chosen: Tensor) -> Tensor:
    """Of rows of places, (rows, count)."""
    spins = _spins(chosen, len(own))
    return spins @ own + (spins @ pairs * spins).sum(1)


def _enumerated(own: Tensor, pairs: Tensor, count: int, most: int) -> Tensor:
    """Rows of places, (most, count), or all that there are."""
    best = torch.zeros(0, count, dtype=torch.int64)
    choices = itertools.combinations(range(len(own)), count)
    while chunk := list(itertools.islice(choices, _CHUNK)):
        best = torch.cat([best, torch.tensor(chunk)])
        best = best[_energies(own, pairs, best).argsort(stable=True)[:most]]
    return best


def _annealed(own: Tensor, pairs: Tensor, count: int, most: int, seed: int) -> Tensor:
    """As `_enumerated`, from the ends of many chains and what is one exchange from them."""
    generator = torch.Generator().manual_seed(seed)
    size, chain = len(own), torch.arange(_CHAINS)
    # In each chain a random order: the first are removed, exchanges are between both parts.
    order = torch.rand(_CHAINS, size, generator=generator).argsort(1)
    fields = own + 2 * _spins(order[:, :count], size) @ pairs
    hottest = (fields.amax() - fields.amin()).clamp(min=1e-300).item()
    steps = _SWEEPS * size
    for step in range(steps):
        goes = torch.randint(count, (_CHAINS,), generator=generator)
        comes = torch.randint(count, size, (_CHAINS,), generator=generator)
        back, away = order[chain, goes], order[chain, comes]
        change = fields[chain, away] - fields[chain, back] - 2 * pairs[back, away]
        heat = hottest * _COLDEST ** (step / steps)
        luck = torch.rand(_CHAINS, generator=generator, dtype=own.dtype).log() * -heat
        taken = change <= luck
        order[chain[taken], goes[taken]] = away[taken]
        order[chain[taken], comes[taken]] = back[taken]
        fields[taken] += 2 * (pairs[away] - pairs[back])[taken]
    best = _best_of(order[:, :count], own, pairs, most)
    while True:  # downhill
        near = torch.cat([best, *(_neighbours(chosen, size) for chosen in best)])
        better = _best_of(near, own, pairs, most)
        if torch.equal(better, best):
            return best
        best = better


def _best_of(chosen: Tensor, own: Tensor, pairs: Tensor, most: int) -> Tensor:
    different: Tensor = torch.unique(chosen.sort(1).values, dim=0)
    return different[_energies(own, pairs, different).argsort(stable=True)[:most]]


def _neighbours(chosen: Tensor, size: int) -> Tensor:
    """All choices that differ in one place."""
    others = torch.tensor(sorted(set(range(size)) - set(chosen.tolist())))
    near = chosen.repeat(len(chosen), len(others), 1)
    for place in range(len(chosen)):
        near[place, :, place] = others
    return near.flatten(0, 1)


def _spins(chosen: Tensor, size: int) -> Tensor:
    spins = torch.zeros(len(chosen), size, dtype=torch.float64)
    return spins.scatter_(1, chosen, 1.0)
