"""Sequential comparison: how often it is wrong, and how soon it is right."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from depthcut.confidence import LEAST_OBSERVATIONS, lower_bound, worse

LOOKS = (24, 36, 54, 81, 122, 183, 275, 412)
RACES = 2000

Draw = Callable[[torch.Generator], Tensor]


def _normal(generator: torch.Generator) -> Tensor:
    return torch.randn(max(LOOKS), generator=generator, dtype=torch.float64)


def _tail_to_the_left(generator: torch.Generator) -> Tensor:
    return 1 + torch.rand(max(LOOKS), generator=generator, dtype=torch.float64).log()


def _tail_to_the_right(generator: torch.Generator) -> Tensor:
    return -_tail_to_the_left(generator)


def _heavy_tails(generator: torch.Generator) -> Tensor:
    """Student's t of 5 degrees."""
    normals = torch.randn(6, max(LOOKS), generator=generator, dtype=torch.float64)
    return normals[0] / (normals[1:].square().mean(0)).sqrt()


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05, 0.2])
@pytest.mark.parametrize(
    "draw", [_normal, _tail_to_the_left, _tail_to_the_right, _heavy_tails], ids=lambda f: f.__name__
)
def test_an_equal_candidate_is_given_up_no_more_often_than_stated(draw: Draw, rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    wrong = sum(
        any(worse(values[:look], rate) for look in LOOKS)
        for values in (draw(generator) for _ in range(RACES))
    )
    slack = 2 * math.sqrt(rate * (1 - rate) / RACES)  # errors of the count itself
    assert wrong / RACES <= rate + slack


def test_looking_after_every_observation_is_allowed() -> None:
    generator = torch.Generator().manual_seed(0)
    looks = range(LEAST_OBSERVATIONS, 200)
    races = [_normal(generator)[:200] for _ in range(100)]
    wrong = sum(any(worse(values[:look], 0.1) for look in looks) for values in races)
    assert wrong / 100 <= 0.1 + 2 * math.sqrt(0.1 * 0.9 / 100)


def test_a_clear_difference_is_found_with_few_observations() -> None:
    generator = torch.Generator().manual_seed(0)
    found = [
        next(look for look in LOOKS if worse(values[:look], 0.05 / 29))
        for values in (_normal(generator) + 1 for _ in range(50))
    ]
    assert sum(found) / 50 < 40


def test_too_few_observations_say_nothing() -> None:
    few = torch.full((LEAST_OBSERVATIONS - 1,), 5.0) + torch.rand(LEAST_OBSERVATIONS - 1)
    assert lower_bound(few, 0.05) == -math.inf


def test_differences_that_never_vary_hide_how_they_vary() -> None:
    assert lower_bound(torch.full((LEAST_OBSERVATIONS,), 0.25), 0.05) == -math.inf
