import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.searching.floating import floating
from depthcut.searching.trials import Removed
from tests.searching.searches_for_tests import (
    Landscape,
    WholeForwards,
    asked,
    layers_of,
    search,
    some_text,
    tiny,
)

COSTS = {(0,): 1.0, (1,): 2.0, (2,): 3.0, (0, 1): 3.0, (0, 2): 3.5, (1, 2): 1.1, (0, 1, 2): 4.0}


def test_a_layer_comes_back_where_fewer_are_then_better_than_was_known() -> None:
    landscape = Landscape(4, lambda removed: COSTS.get(removed, 9.0))
    # The pair that the first layer leads to, three, and the pair among them that greedy misses.
    assert list(floating(landscape, asked([3], range(4)))) == [
        *((0,), (0, 1), (0, 1, 2), (1, 2), (0, 1, 2)),
    ]


@given(st.integers(0, 10_000), st.integers(4, 7))
def test_each_number_of_layers_only_ever_gets_better_and_the_search_ends(
    seed: int, layers: int
) -> None:
    costs = random.Random(seed)
    known = {
        removed: costs.random() + len(removed)
        for count in range(1, layers)
        for removed in itertools.combinations(range(layers), count)
    }
    landscape = Landscape(layers, known.__getitem__)
    best: dict[int, float] = {}
    for removed in floating(landscape, asked([layers - 1], range(layers))):
        cost = known[removed]
        assert cost <= best.get(len(removed), cost)
        best[len(removed)] = cost
    assert sorted(best) == list(range(1, layers))


@pytest.mark.parametrize("objective", ["kl", "loss"])
def test_it_chooses_what_a_plain_loop_of_whole_forwards_chooses(objective: str) -> None:
    costs = WholeForwards(tiny(8), some_text())
    found = search("floating", layers=8, drop="1:6", objective=objective)
    assert layers_of(found) == plain(costs, 8, 6, objective)


def plain(costs: WholeForwards, layers: int, most: int, objective: str) -> list[Removed]:
    """Sequential floating selection as it is in textbooks, over sets of removed layers."""

    def least(sets: list[frozenset[int]]) -> frozenset[int]:
        return min(sets, key=cost)

    def cost(removed: frozenset[int]) -> float:
        return costs.cost(tuple(sorted(removed)), objective)

    best: dict[int, frozenset[int]] = {}
    current: frozenset[int] = frozenset()
    while len(current) < most:
        count = len(current) + 1
        current = least([current | {layer} for layer in range(layers) if layer not in current])
        if count in best and cost(best[count]) <= cost(current):
            current = best[count]
        best[count] = current
        while len(current) > 1:
            smaller = least([current - {layer} for layer in current])
            if cost(smaller) >= cost(best[len(smaller)]):
                break
            best[len(smaller)] = current = smaller
    return [tuple(sorted(best[count])) for count in sorted(best)]
