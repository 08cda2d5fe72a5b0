import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.text.mixing import interleaved


def order(counts: list[int], weights: list[float]) -> list[int]:
    streams = [iter([1] * count) for count in counts]
    return [which for which, _ in interleaved(streams, weights, size=lambda item: item)]


def test_one_stream_is_as_it_was() -> None:
    assert list(interleaved([iter("abc")], [0.3], size=lambda _: 1)) == [
        (0, "a"),
        (0, "b"),
        (0, "c"),
    ]


def test_equal_weights_take_turns_and_the_rare_one_comes_in_the_middle_of_its_turn() -> None:
    assert order([3, 3], [1, 1]) == [0, 1, 0, 1, 0, 1]
    assert order([14, 2], [7, 1]) == 2 * [0, 0, 0, 0, 1, 0, 0, 0]
    assert order([4, 2], [2, 1]) == 2 * [0, 1, 0]


def test_where_a_stream_ends_the_others_go_on() -> None:
    assert order([1, 4, 2], [1, 1, 1]) == [0, 1, 2, 1, 2, 1, 1]
    assert order([0, 2], [1, 1]) == [1, 1]
    assert order([], []) == []


def test_nothing_is_read_further_ahead_than_one_item() -> None:
    read = [0, 0]

    def endless(which: int) -> Iterator[int]:
        for read[which] in itertools.count(1):
            yield 5

    found = interleaved([endless(0), endless(1)], [3, 1], size=lambda item: item)
    taken = [which for which, _ in itertools.islice(found, 40)]
    assert (taken.count(0), taken.count(1)) == (30, 10)
    assert read in ([31, 10], [30, 11])


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    st.data(),
)
def test_every_beginning_is_a_fair_sample(weights: list[float], data: st.DataObject) -> None:
    sizes = data.draw(
        st.lists(
            st.lists(st.integers(1, 50), min_size=40, max_size=40),
            min_size=len(weights),
            max_size=len(weights),
        )
    )
    reached, left = [0] * len(weights), [40] * len(weights)
    for which, size in interleaved([iter(each) for each in sizes], weights, size=lambda item: item):
        reached[which], left[which] = reached[which] + size, left[which] - 1
        # A share is never further off than one item of each stream, the largest there is.
        for weight, tokens in zip(weights, reached, strict=True):
            fair = sum(reached) * weight / sum(weights)
            assert abs(tokens - fair) <= 50 * len(weights) / 2 + 1e-6
        if not min(left):
            return


def test_the_order_is_the_same_every_time() -> None:
    assert order([50, 50, 50], [0.1, 0.2, 0.3]) == order([50, 50, 50], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("factor", [0.5, 3, 100])
def test_only_the_proportion_of_the_weights_counts(factor: float) -> None:
    assert order([50, 50], [2, 1]) == order([50, 50], [2 * factor, factor])
