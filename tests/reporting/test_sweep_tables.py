"""Which ways are best, which are tied with them, how far behind the others are."""

import math
from array import array

import msgspec
import pytest

from depthcut.records import Sweep
from depthcut.reporting.sweep_tables import (
    cells,
    cells_by_way,
    some_counts,
    standing_rows,
    standings,
    taken,
)
from tests.reporting.sweeps_for_tests import SEQUENCES, TEXTS, WAYS, make_sweep


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return make_sweep()


def test_the_best_of_a_number_of_layers_has_the_lowest_loss(sweep: Sweep) -> None:
    for judged in sweep.judged:
        for count in sweep.counts:
            row = cells(sweep, judged, count)
            (best,) = [cell for cell in row if cell.best]
            assert best.said.loss.value == min(cell.said.loss.value for cell in row)
            assert best.tied


def test_tied_is_within_two_errors_of_the_paired_difference(sweep: Sweep) -> None:
    judged = sweep.judged[0]
    row = cells(sweep, judged, 1)
    best = next(cell for cell in row if cell.best)
    for cell in row:
        if not cell.best:
            difference = judged.difference(cell.said, best.said)
            assert cell.tied == (difference.value < 2 * difference.stderr)
    # The losses themselves overlap by far: it is the pairing that tells them apart.
    second = row[1]
    assert second.said.loss.value - best.said.loss.value < second.said.loss.stderr
    assert not second.tied


def test_a_way_that_is_worse_by_chance_is_tied(sweep: Sweep) -> None:
    judged = sweep.judged[0]
    first, second = (judged.find(way.choices[0].removed) for way in sweep.ways[:2])
    shaken = array("f", first.by_sequence)
    for place in range(SEQUENCES):
        shaken[place] += 0.002 + (0.05 if place % 2 else -0.05)
    near = msgspec.structs.replace(
        second,
        by_sequence=shaken.tobytes(),
        loss=msgspec.structs.replace(first.loss, value=first.loss.value + 0.002),
    )
    others = tuple(near if each is second else each for each in judged.judgements)
    changed = msgspec.structs.replace(judged, judgements=others)
    row = cells(sweep, changed, 1)
    assert [(cell.best, cell.tied) for cell in row[:3]] == [
        (True, True),
        (False, True),
        (False, False),
    ]


def test_ways_that_take_the_same_layers_are_best_together(sweep: Sweep) -> None:
    same = msgspec.structs.replace(sweep.ways[0], name="twin")
    both = msgspec.structs.replace(sweep, ways=(*sweep.ways, same))
    best = [cell.way.name for cell in cells(both, both.judged[0], 3) if cell.best]
    assert best == ["greedy", "twin"]


def test_standings_are_by_how_far_behind_the_best_a_way_is(sweep: Sweep) -> None:
    found = standings(sweep)
    assert [each.way.name for each in found] == list(WAYS)
    assert (found[0].behind, found[0].leads, found[0].places) == (0, 14, 14)
    second = found[1]
    behind = [
        judged.find(way.removed).loss.value / judged.find(first.removed).loss.value - 1
        for judged in sweep.judged
        for way, first in zip(sweep.ways[1].choices, sweep.ways[0].choices, strict=True)
    ]
    assert second.behind == pytest.approx(math.fsum(behind) / 14)
    assert second.most_behind == pytest.approx(max(behind))


def test_a_way_is_compared_where_it_chose(sweep: Sweep) -> None:
    first, second, *others = sweep.ways
    short = msgspec.structs.replace(first, choices=first.choices[:2])
    none = msgspec.structs.replace(second, choices=())
    ragged = msgspec.structs.replace(sweep, ways=(short, none, *others))
    found = {each.way.name: each for each in standings(ragged)}
    assert found["greedy"].places == 4
    assert "kl-block" not in found
    rows = cells_by_way(ragged, ragged.judged[0])
    assert [cell is None for cell in rows["greedy"]] == [False, False, *[True] * 5]
    assert [cell is None for cell in rows["kl-block"]] == [True] * 7
    assert taken(short, 7) == "–"


def test_baselines_cost_nothing(sweep: Sweep) -> None:
    rows = {row[0]: row for row in standing_rows(sweep)}
    assert rows["last"][-2:] == ("none", "0")
    assert rows["greedy"][-2:] == ("4 min 40 s", "280")
    assert rows["angular"][-1] == "0.8"
    assert rows["greedy"][3] == f"{7 * len(TEXTS)} of {7 * len(TEXTS)}"


def test_few_numbers_of_layers_are_spread_evenly() -> None:
    assert some_counts(range(1, 13), 7) == [1, 3, 5, 7, 8, 10, 12]
    assert some_counts([2, 4], 7) == [2, 4]


def test_a_way_that_chose_few_numbers_of_layers_is_not_the_first(sweep: Sweep) -> None:
    best, *others = sweep.ways
    short = msgspec.structs.replace(best, choices=best.choices[:2])
    ranked = standings(msgspec.structs.replace(sweep, ways=(short, *others)))
    assert [each.way.name for each in ranked] == [*WAYS[1:], WAYS[0]]
    assert ranked[-1].behind == 0
    assert ranked[-1].places < ranked[0].places
