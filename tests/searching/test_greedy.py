import pytest

from depthcut.errors import PlanError
from depthcut.searching.greedy import block, greedy, greedy_block
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


def plain_sleb(costs: WholeForwards, layers: int, most: int, objective: str) -> list[Removed]:
    """Algorithm 1 of SLEB: every layer tried, the whole model run each time."""
    removed: list[int] = []
    chosen = []
    for _ in range(most):
        tried = {}
        for layer in range(layers):
            if layer not in removed:
                tried[layer] = costs.cost(tuple(sorted([*removed, layer])), objective)
        removed.append(min(tried, key=lambda layer: tried[layer]))
        chosen.append(tuple(sorted(removed)))
    return chosen


@pytest.mark.parametrize("objective", ["loss", "kl"])
def test_it_chooses_what_a_plain_loop_of_whole_forwards_chooses(objective: str) -> None:
    found = search("greedy", layers=8, drop="1:6", objective=objective)
    costs = WholeForwards(tiny(8), some_text())
    assert layers_of(found) == plain_sleb(costs, 8, 6, objective)
    for point, removed in zip(found.frontier, layers_of(found), strict=True):
        assert point.loss.value == pytest.approx(costs.cost(removed, "loss"), abs=1e-5)
        assert point.kl_divergence.value == pytest.approx(costs.cost(removed, "kl"), rel=2e-3)


@pytest.mark.parametrize("largest", [1, 2, 4])
def test_blocks_are_what_a_plain_loop_over_their_sizes_chooses(largest: int) -> None:
    costs = WholeForwards(tiny(), some_text())
    chosen: list[Removed] = [()]
    for count in range(1, 5):
        tried = []
        for size in range(1, min(largest, count) + 1):
            before = chosen[count - size]
            left = [layer for layer in range(6) if layer not in before]
            for start in range(len(left) - size + 1):
                tried.append(tuple(sorted((*before, *left[start : start + size]))))
        chosen.append(min(tried, key=costs.cost))
    assert layers_of(search("greedy-block", largest_block=largest)) == chosen[1:]


def test_a_block_may_go_that_no_single_layer_leads_to() -> None:
    landscape = Landscape(5, lambda removed: 0.1 if removed == (2, 3) else 1.0 + sum(removed))
    choices = greedy_block(landscape, asked([2], range(5), largest_block=2))
    assert list(choices) == [(0,), (2, 3)]
    assert list(greedy(landscape, asked([2], range(5)))) == [(0,), (0, 1)]


def test_protected_layers_stay_between_the_parts_of_a_block() -> None:
    landscape = Landscape(6, lambda removed: -sum(removed))
    allowed = asked([1, 2], (0, 1, 3, 4), largest_block=2)
    assert list(greedy_block(landscape, allowed)) == [(4,), (3, 4)]
    assert not {(1, 3), (4, 5), (5,)} & set(landscape.seen)


def test_the_best_block_of_each_size_is_found() -> None:
    costs = WholeForwards(tiny(), some_text())
    blocks = [tuple(range(start, start + 3)) for start in range(4)]
    assert layers_of(search("block", drop=3)) == [min(blocks, key=costs.cost)]


def test_a_block_that_protected_layers_leave_no_room_for_is_refused() -> None:
    with pytest.raises(PlanError, match=r"no block of 3 layers leaves the protected layers 2,3"):
        list(block(Landscape(6, sum), asked([2, 3], (0, 1, 4, 5), protect="2,3")))


def test_the_last_layer_that_may_go_needs_no_choice() -> None:
    assert layers_of(search("greedy", drop="3", protect="0,1,2")) == [
        *layers_of(search("greedy", drop="2", protect="0,1,2")),
        (3, 4, 5),
    ]
