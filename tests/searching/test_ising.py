import itertools

import pytest
import torch
from torch import Tensor

from depthcut.searching import ising as module
from depthcut.searching.ising import lowest_energies, quadratic_form
from depthcut.searching.trials import Removed
from tests.searching.searches_for_tests import layers_of, search


def random_form(layers: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    couplings = torch.randn(layers, layers, generator=generator, dtype=torch.float64)
    return torch.randn(layers, generator=generator, dtype=torch.float64), couplings + couplings.T


def energy(fields: Tensor, couplings: Tensor, removed: Removed) -> float:
    total = sum(fields[layer].item() for layer in removed)
    return total + sum(couplings[i, j].item() for i in removed for j in removed)


@pytest.mark.parametrize("count", [1, 3, 6, 8])
def test_the_least_energies_are_those_of_all_choices(count: int) -> None:
    fields, couplings = random_form(10, seed=count)
    free = (0, 1, 3, 4, 6, 7, 8, 9)
    ranking = sorted(
        itertools.combinations(free, count), key=lambda each: energy(fields, couplings, each)
    )
    assert lowest_energies(fields, couplings, free, count, most=5) == ranking[:5]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 5, 11, 19])
def test_annealing_finds_the_least_energies_of_all_choices(
    monkeypatch: pytest.MonkeyPatch, count: int, seed: int
) -> None:
    form = random_form(20, seed)
    exact = lowest_energies(*form, range(20), count, most=4)
    monkeypatch.setattr(module, "_MOST_ENUMERATED", 0)
    found = lowest_energies(*form, range(20), count, most=4, seed=seed)
    assert found[0] == exact[0]
    assert found == lowest_energies(*form, range(20), count, most=4, seed=seed)


def test_the_form_is_the_expected_second_order_of_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    random = torch.randn(20000, 1, 4, generator=generator, dtype=torch.float64) @ root
    slopes = torch.full((20000, 1, 4), -0.5, dtype=torch.float64)
    gradients = torch.cat([slopes, random], dim=1)
    fields, couplings = quadratic_form(gradients, "kl")
    assert not fields.any()
    torch.testing.assert_close(couplings, root.T @ root / 2, atol=0.1, rtol=0.05)
    fields, again = quadratic_form(gradients, "loss")
    assert fields.tolist() == [0.5] * 4  # the loss grows by as much as it falls with a gate
    assert torch.equal(again, couplings)


@pytest.mark.parametrize("objective", ["kl", "loss"])
def test_the_best_of_the_shortlist_is_chosen_by_measurement(objective: str) -> None:
    every = search("ising", drop=2, shortlist=15, objective=objective)
    best = search("exact", drop=2, shortlist=15, objective=objective)
    assert layers_of(every) == layers_of(best)
    few = search("ising", drop=2, shortlist=1, objective=objective)
    assert few.frontier[0].runners_up == ()
