import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.errors import PlanError
from depthcut.searching.exact import exact
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


@given(
    st.lists(st.floats(-5, 5), min_size=27, max_size=27),
    st.sets(st.integers(0, 8), max_size=3),
    st.integers(1, 3),
)
def test_it_is_exact_where_costs_of_separate_blocks_add_up(
    values: list[float], protected: set[int], largest: int
) -> None:
    free = [layer for layer in range(9) if layer not in protected]

    def cost(removed: Removed) -> float:
        found = 0.0
        for _, block in itertools.groupby(enumerate(removed), lambda each: each[1] - each[0]):
            layers = [layer for _, layer in block]
            if len(layers) > 3:
                return 1e9
            found += values[3 * layers[0] + len(layers) - 1]
        return found

    def possible(removed: Removed) -> bool:
        longest = max(
            len(list(block))
            for _, block in itertools.groupby(enumerate(removed), lambda each: each[1] - each[0])
        )
        return longest <= largest

    for count in range(1, 5):
        choices = [each for each in itertools.combinations(free, count) if possible(each)]
        if not choices:
            with pytest.raises(PlanError, match=f"no {count} layers can go in separate blocks"):
                list(exact(Landscape(9, cost), asked([count], free, largest_block=largest)))
            continue
        (found,) = exact(Landscape(9, cost), asked([count], free, largest_block=largest))
        assert cost(found) == pytest.approx(min(map(cost, choices)), abs=1e-9)
        assert possible(found)


def test_the_best_sum_need_not_be_the_best_choice() -> None:
    def cost(removed: Removed) -> float:
        together = {(0, 2): 9.0, (0, 3): 5.0}
        return together.get(removed, float(sum(removed)) + (10.0 if len(removed) > 1 else 0.0))

    options = {"largest_block": 1, "counts": [2], "free": range(4)}
    assert list(exact(Landscape(4, cost), asked(shortlist=1, **options))) == [(0, 2)]
    assert list(exact(Landscape(4, cost), asked(shortlist=2, **options))) == [(0, 3)]


def test_it_chooses_the_least_sums_of_whole_forwards() -> None:
    costs = WholeForwards(tiny(), some_text())
    sums = {
        (one, other): costs.cost((one,)) + costs.cost((other,))
        for one in range(6)
        for other in range(one + 2, 6)
    }
    sums |= {(layer, layer + 1): costs.cost((layer, layer + 1)) for layer in range(5)}
    shortlist = sorted(sums, key=lambda pair: sums[pair])[:3]
    found = search("exact", drop=2, shortlist=3, largest_block=2)
    assert layers_of(found) == [min(shortlist, key=costs.cost)]
