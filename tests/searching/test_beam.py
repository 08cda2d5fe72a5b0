import itertools
import random

import pytest

from depthcut.searching.beam import beam
from tests.searching.searches_for_tests import Landscape, asked, best_of_all, layers_of, search


@pytest.mark.parametrize("error_rate", [0.0, 0.05])
def test_a_beam_of_one_is_greedy(error_rate: float) -> None:
    options = {"layers": 8, "drop": "1:6", "error_rate": error_rate}
    one = search("beam", beam_width=1, **options)  # type: ignore[arg-type]
    assert layers_of(one) == layers_of(search("greedy", **options))  # type: ignore[arg-type]


def test_a_beam_as_wide_as_all_choices_finds_the_best_of_all() -> None:
    draw = random.Random(0)
    costs = {
        removed: draw.random()
        for count in range(1, 6)
        for removed in itertools.combinations(range(6), count)
    }
    landscape = Landscape(6, costs.__getitem__)
    best: dict[int, float] = {}
    for removed in beam(landscape, asked([5], range(6), beam_width=20)):
        best[len(removed)] = min(costs[removed], best.get(len(removed), 9.0))
    assert best == {count: best_of_all(landscape, range(6), count) for count in range(1, 6)}


def test_a_choice_that_several_beams_lead_to_is_measured_once() -> None:
    found = search("beam", drop=2, beam_width=6)
    # The untouched model, six single layers, and 15 pairs; all read the whole text.
    assert found.cost.evaluations == 1 + 6 + 15
