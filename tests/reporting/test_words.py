"""Numbers and judgements say what the records say, no more."""

import msgspec
import pytest

from depthcut.records import Estimate, Spread, Stopping
from depthcut.reporting import words


def of(value: float, stderr: float) -> Estimate:
    return Estimate(value=value, stderr=stderr)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.amount(134_515_008), "134.5 M"),
        (words.amount(7_241_732_096), "7.24 B"),
        (words.amount(999), "999"),
        (words.size(269_030_016), "269.0 MB"),
        (words.size(15_000_000_000), "15.0 GB"),
        (words.size(12), "12 bytes"),
        (words.duration(3.21), "3.2 s"),
        (words.duration(61.4), "1 min 1 s"),
        (words.duration(7_260), "2 h 1 min"),
        (words.change(30, 23), "−23 %"),
        (words.short_source("/data/wikitext2/valid.txt"), "wikitext2/valid.txt"),
        (words.short_source("a.txt"), "a.txt"),
        (words.short_source("Salesforce/wikitext"), "Salesforce/wikitext"),
        (words.short_source("/x/y/a.md (6%) and b/c/d.md (94%)"), "y/a.md (6%) and c/d.md (94%)"),
        (words.change(100, 98.2), "−1.8 %"),
        (words.change(5, 5), "0.0 %"),
        (words.score(0.3), "0.300"),
        (words.score(0.0594), "0.0594"),
        (words.plain(-0.0001, 2), "0.00"),
    ],
)
def test_numbers_are_short_and_exact(shown: str, expected: str) -> None:
    assert shown == expected


def test_a_mean_has_as_many_decimals_as_its_error_allows() -> None:
    assert words.estimate(of(28.7123, 0.4321)) == "28.71 ± 0.43"
    assert words.estimate(of(412.7, 31.0)) == "413 ± 31"
    assert words.estimate(of(-0.0123, 0.0042), sign=True) == "−0.0123 ± 0.0042"
    assert words.estimate(of(28.7123, 0.0)) == "28.7"
    assert words.estimate(of(0.0, 0.0)) == "0.00"


def test_means_side_by_side_share_their_decimals() -> None:
    assert words.estimates([of(28.79, 0.89), of(77.5, 2.4)]) == ("28.8 ± 0.9", "77.5 ± 2.4")
    assert words.estimates([of(28.79, 0.89), of(91_234.0, 5_100.0)])[1] == "91,234 ± 5,100"


def test_two_standard_errors_decide() -> None:
    assert words.verdict(of(0.021, 0.01)).kind == "worse"
    assert words.verdict(of(-0.021, 0.01)).kind == "better"
    assert words.verdict(of(0.019, 0.01)).kind == "same"
    assert words.verdict(of(0.99, 0.012)).text == (
        "significantly worse by 0.990 ± 0.012 nats per token"
    )
    assert words.verdict(of(0.019, 0.01)).text.startswith("not distinguishable")


def test_one_sequence_gives_no_verdict() -> None:
    assert words.verdict(of(0.5, 0.0)).text == "worse by 0.500 nats per token, error unknown"
    assert words.verdict(of(0.0, 0.0)).kind == "same"


def test_a_ratio_is_shown_with_its_middle_half() -> None:
    found = words.ratio(Spread(median=1.3, low=1.28, high=1.312, rounds=(1.28, 1.3, 1.312)))
    assert found is not None
    assert (found.text, found.spread) == ("1.30×", "1.28–1.31")


def test_a_speed_that_was_not_measured_has_no_ratio() -> None:
    assert words.ratio(None) is None
    assert words.speed(None) == ("–", "")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0412, "41.2 ms"), (0.9994, "999 ms"), (1.239, "1.24 s"), (61, "61.00 s")],
)
def test_short_times_have_three_digits(number: float, text: str) -> None:
    assert words.seconds(number) == text


def test_a_survey_that_stopped_says_what_that_took() -> None:
    stopping = Stopping(
        settled=True,
        confidence=0.95,
        criterion="angular",
        removed=((12, 19),),
        tokens=12288,
        of_tokens=65536,
    )
    assert words.stopping_in_words(stopping) == (
        "Settled after 12,288 of 65,536 tokens, with confidence 0.95: layers 12–18 (7 layers), by "
        "angular distance."
    )
    ended = msgspec.structs.replace(stopping, settled=False, tokens=65536)
    assert words.stopping_in_words(ended) == (
        "Not settled by 65,536 tokens, with confidence 0.95: layers 12–18 (7 layers), by angular "
        "distance, may not be the choice on others."
    )
