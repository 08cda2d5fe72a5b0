import inspect
import re

import pytest

from depthcut.errors import SettingsError
from depthcut.searching.methods import METHODS
from depthcut.settings import SearchSettings
from tests.searching.searches_for_tests import layers_of, search

ON_THE_WAY = ("greedy", "greedy-block", "floating", "beam", "evolve")
"""Methods that pass every number of layers."""
FEW = {"generations": 3, "offspring": 4}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_chooses_each_number_of_layers_from_those_that_may_go(method: str) -> None:
    found = search(method, layers=8, drop="2,4", protect="1,7", **FEW)
    counts = [len(removed) for removed in layers_of(found)]
    assert counts == ([1, 2, 3, 4] if method in ON_THE_WAY else [2, 4])
    for point, removed in zip(found.frontier, layers_of(found), strict=True):
        assert len(set(removed) - {1, 7}) == len(removed)
        assert all(each.score >= _score(point) for each in point.runners_up)
        assert point.loss_difference.value == pytest.approx(
            point.loss.value - found.untouched.value, abs=1e-12
        )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_repeats_itself(method: str) -> None:
    one, other = (search(method, error_rate=0.05, **FEW) for _ in range(2))
    assert one.frontier[0].removed == other.frontier[0].removed
    assert layers_of(one) == layers_of(other)
    assert one.cost.layer_passes == other.cost.layer_passes


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_take_all_layers_but_one(method: str) -> None:
    found = search(method, drop=5, largest_block=5, **FEW)
    assert len(layers_of(found)[-1]) == 5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_is_in_one_line(method: str) -> None:
    meaning = METHODS[method].meaning
    assert meaning
    assert meaning[0].islower()
    assert not meaning.endswith(".")
    assert METHODS[method].paper or method == "random"


def test_methods_that_draw_draw_by_the_seed() -> None:
    one, other = (layers_of(search("random", drop="1:5", seed=seed)) for seed in (0, 1))
    assert one != other


def test_the_deepest_layers_go_but_the_very_last_one_only_if_no_other_may() -> None:
    assert layers_of(search("last", drop="1:3")) == [(4,), (3, 4), (2, 3, 4)]
    assert layers_of(search("last", drop=3, protect="0,1,3")) == [(2, 4, 5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gredy"}, r"no method 'gredy' \(did you mean greedy\?\)"),
        ({"error_rate": 0.5}, "from 0 to below 0.5"),
        ({"beam_width": 0}, "beam_width 0: at least 1"),
        ({"largest_block": 0}, "largest_block 0: at least 1"),
        ({"offspring": -1}, "offspring -1: at least 1"),
        ({"initial_tokens": 0}, "initial_tokens 0: at least 1"),
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"batch_size": -1}, "batch_size -1: at least 1"),
        ({"generations": -1}, "generations -1: at least 0"),
        ({"survivors_per_selection": (4, 2, 1)}, "survivors_per_selection 4 2 1 and tokens_per"),
        ({"survivors_per_selection": (4, 2)}, "the last selection must leave 1"),
        ({"survivors_per_selection": (), "tokens_per_selection": ()}, "as many of one"),
        ({"tokens_per_selection": (0, 5)}, "each at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        search(**{"method": "evolve", **changes})  # type: ignore[arg-type]


def test_the_help_names_every_method() -> None:
    source = inspect.getsource(SearchSettings)
    text = source.split("    method: ", 1)[1].split('"""')[1]
    assert set(METHODS) <= set(re.split(r"[\s,;:]+", text))


def _score(point: object) -> float:
    return point.kl_divergence.value  # type: ignore[attr-defined]
