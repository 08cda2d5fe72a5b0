import math
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.evaluation.degeneration import (
    degeneration_of,
    distinct,
    edit_distance,
    repetition,
    token_agreement,
)
from depthcut.evaluation.generation import Generation
from depthcut.evaluation.pairing import mean_estimate
from depthcut.records import Estimate

TOKENS = st.lists(st.integers(0, 3), max_size=70)
"""Few different tokens, so that texts agree by chance; more than a machine word of them."""


def written(*ids: int, ended: bool = True) -> Generation:
    return Generation(text="", ids=ids, prompt_ids=(9,), ended=ended)


def plain_edit_distance(before: Sequence[int], after: Sequence[int]) -> int:
    """The whole table, row by row."""
    row = list(range(len(after) + 1))
    for count, old in enumerate(before, start=1):
        above, row = row, [count]
        for place, new in enumerate(after):
            row.append(min(above[place + 1] + 1, row[-1] + 1, above[place] + (old != new)))
    return row[-1]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((), 0),
        ((1,), 0),
        ((1, 1, 1), 0),  # no four tokens
        ((1, 1, 1, 1), 0),
        ((1, 2, 3, 4, 5, 6), 0),
        ((1, 1, 1, 1, 1), 1 / 2),
        ((1, 2) * 4, 3 / 5),  # 1212 2121 1212 2121 1212
        ((1, 2, 3, 4, 1, 2, 3, 4), 1 / 5),  # only 1234 comes again
        ((7,) * 103, 99 / 100),
    ],
)
def test_repetition_is_the_share_of_four_grams_that_came_before(
    ids: tuple[int, ...], expected: float
) -> None:
    assert repetition(ids) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("texts", "one", "two"),
    [
        ([], 0, 0),
        ([()], 0, 0),
        ([(1,)], 1, 0),  # no pair
        ([(1, 2, 3)], 1, 1),
        ([(1, 2, 1, 2)], 2 / 4, 2 / 3),
        ([(1, 2), (1, 2)], 2 / 4, 1 / 2),  # the same answer to every prompt
        ([(1, 2), (2, 1), ()], 2 / 4, 1),  # and no pair across texts
    ],
)
def test_distinct_counts_different_tokens_and_pairs_of_all_texts(
    texts: list[tuple[int, ...]], one: float, two: float
) -> None:
    assert distinct(texts, 1) == pytest.approx(one)
    assert distinct(texts, 2) == pytest.approx(two)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((), (), 0),
        ((), (1, 2), 2),
        ((1, 2), (), 2),
        ((1, 2, 3), (1, 2, 3), 0),
        ((1, 2, 3), (2, 3), 1),
        ((1, 2, 3, 4), (1, 9, 3, 4, 4), 2),
        ((1, 2), (2, 1), 2),
    ],
)
def test_edit_distance_by_hand(
    before: tuple[int, ...], after: tuple[int, ...], expected: int
) -> None:
    assert edit_distance(before, after) == expected


@given(TOKENS, TOKENS)
def test_edit_distance_is_that_of_the_whole_table(before: list[int], after: list[int]) -> None:
    assert edit_distance(before, after) == plain_edit_distance(before, after)


def test_agreement_is_what_is_left_of_the_longer_text() -> None:
    assert token_agreement((1, 2, 3, 4), (1, 2, 3, 5)) == 0.75
    assert token_agreement((1, 2, 3, 4), (1, 2)) == 0.5
    assert token_agreement((1, 2), (3, 4, 5, 6)) == 0
    assert token_agreement((1, 2), ()) == 0
    assert token_agreement((), ()) == 1


def test_all_numbers_by_hand() -> None:
    first = [written(1, 2, 3, 4), written(5, 6)]
    found = degeneration_of(
        [written(1, 1, 1, 1, 1, ended=False), written(5)],
        first,
        reference_perplexity=Estimate(value=3, stderr=1),
    )
    assert found is not None
    assert found.tokens == Estimate(value=3, stderr=2)
    assert found.unfinished == Estimate(value=0.5, stderr=0.5)
    assert found.repetition == Estimate(value=0.25, stderr=0.25)
    assert found.distinct_1 == pytest.approx(2 / 6)
    assert found.distinct_2 == pytest.approx(1 / 4)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx((1 / 5 + 1 / 2) / 2)
    assert found.agreement.stderr == pytest.approx(math.sqrt(2 * 0.15**2 / 2))
    assert found.reference_perplexity == Estimate(value=3, stderr=1)


def test_the_first_model_is_not_beside_itself() -> None:
    found = degeneration_of([written(1, 2), written(3)])
    assert found is not None
    assert found.agreement is None
    assert found.reference_perplexity is None


def test_a_model_that_says_nothing_has_numbers_too() -> None:
    found = degeneration_of([written(), written()], [written(1), written(2)])
    assert found is not None
    assert found.tokens == mean_estimate([0, 0])
    assert (found.distinct_1, found.distinct_2) == (0, 0)
    assert found.agreement == Estimate(value=0, stderr=0)
    assert found.repetition == Estimate(value=0, stderr=0)


def test_one_prompt_asked_again_and_again_has_no_spread() -> None:
    found = degeneration_of([written(1, 2, 3, ended=False)] * 5)
    assert found is not None
    assert found.tokens == Estimate(value=3, stderr=0)
    assert found.unfinished == Estimate(value=1, stderr=0)
    assert found.distinct_1 == pytest.approx(3 / 15)


@pytest.mark.parametrize("count", [0, 1])
def test_errors_over_fewer_than_two_prompts_are_unknown(count: int) -> None:
    assert degeneration_of([written(1, 2)] * count) is None


def test_generations_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and 2 generations: expected the same prompts"):
        degeneration_of([written(1), written(2)], [written(1)])


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, depthcut.evaluation.degeneration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
