"""Criteria side by side."""

import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from depthcut.records import Scores, Survey
from depthcut.reporting.criteria_tables import (
    choices,
    comparable,
    layer_table,
    lowest,
    rank_table,
    spearman,
)
from depthcut.reporting.terminal import survey_table
from tests.records_for_tests import make_scores, make_survey
from tests.reporting.run_for_tests import make_run
from tests.reporting.short_rows import short_rows

numbers = st.integers(-9, 9)


def survey_of(*scores: Scores, layers: int = 5) -> Survey:
    return msgspec.structs.replace(make_survey(layers), scores=scores)


def of_layers(values: list[float], name: str = "block-influence") -> Scores:
    return make_scores([values], len(values), scope="layer", criterion=name)


@given(st.lists(st.tuples(numbers, numbers), min_size=3, max_size=12))
def test_spearman_is_the_correlation_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    ranks = [
        [
            sum(other < value for other in side) + (sum(other == value for other in side) - 1) / 2
            for value in side
        ]
        for side in map(list, zip(*pairs, strict=True))
    ]
    means = [sum(side) / len(side) for side in ranks]
    apart = [[rank - mean for rank in side] for side, mean in zip(ranks, means, strict=True)]
    spread = (sum(a * a for a in apart[0]) * sum(b * b for b in apart[1])) ** 0.5
    found = spearman([one for one, _ in pairs], [other for _, other in pairs])
    if not spread:
        assert found is None
    else:
        together = sum(a * b for a, b in zip(*apart, strict=True))
        assert found == pytest.approx(together / spread, abs=1e-12)


def test_spearman_of_known_orders() -> None:
    assert spearman([1, 2, 3, 40], [5, 6, 7, 8]) == pytest.approx(1)
    assert spearman([1, 2, 3, 40], [8, 7, 6, 5]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert spearman([1, 2], [1, 2]) is None
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_the_lowest_block_or_the_lowest_layers() -> None:
    block = make_scores([[9.0, 5, 9, 1, 4, 9, 2, 7, 3, 8, 9, 9, 9, 9, 9]], 5)
    assert lowest(block, 2) == ((1, 3),)
    for size in range(1, 6):
        ((start, stop),) = lowest(block, size)
        assert stop - start == size
        assert block.mean[start][size - 1] == min(
            row[size - 1] for row in block.mean if len(row) >= size
        )
    layers = of_layers([5.0, 1, 4, 2, 3])
    assert lowest(layers, 2) == ((1, 2), (3, 4))
    assert lowest(layers, 3) == ((1, 2), (3, 5))


def test_the_tables_hold_every_criterion() -> None:
    survey = make_run(30).survey
    assert survey
    names = ("angular", "block-influence", "relative-magnitude")
    assert choices(survey).columns == ("criterion", "1", "2", "3", "4", "6", "8", "12")
    assert [row[0] for row in choices(survey).rows] == list(names)
    assert layer_table(survey).columns == ("layer", *names)
    assert len(layer_table(survey).rows) == 30
    assert rank_table(survey).columns == ("criterion", *names)
    assert [row[0] for row in rank_table(survey).rows] == list(names)
    assert [rank_table(survey).rows[place][place + 1] for place in range(3)] == ["1.00"] * 3


def test_all_tokens_are_compared_where_a_criterion_has_them() -> None:
    survey = make_run(6).survey
    assert survey
    last = tuple(
        each for each in survey.scores if (each.criterion, each.tokens) != ("angular", "all")
    )
    found = comparable(msgspec.structs.replace(survey, scores=last))
    assert [(each.criterion, each.tokens) for each in found] == [
        ("angular", "last"),
        ("block-influence", "all"),
        ("relative-magnitude", "all"),
    ]


def test_what_is_not_scored_is_a_dash() -> None:
    survey = make_run(12).survey
    assert survey
    short = short_rows(survey, first=1, largest=2)
    by_size = dict(zip(choices(short).columns, choices(short).rows[0], strict=True))
    assert by_size["2"] != "–"
    assert (by_size["3"], by_size["6"]) == ("–", "–")
    assert layer_table(short).rows[0][1] == "–"
    assert rank_table(short).rows[0][1] == "1.00"


@pytest.mark.parametrize("criteria", [1, 5])
def test_the_terminal_shows_any_number_of_criteria(criteria: int) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    survey = short_rows(make_survey(8), first=1, largest=3)
    block = survey.scores[0]
    many = [msgspec.structs.replace(block, criterion=f"block-{n}") for n in range(criteria)]
    console.print(survey_table(msgspec.structs.replace(survey, scores=tuple(many))))
    text = console.export_text()
    assert f"block-{criteria - 1}" in text
    assert "4 layers" in text if criteria == 1 else "What goes" in text
    ((start, stop),) = lowest(block, 3)
    assert f"{start}–{stop - 1}" in text
    assert "–" in text
