"""How much a choice depends on the text."""

import random
import time
from typing import Literal

import msgspec
import pytest

from depthcut.planning import plan_from_survey
from depthcut.records import Stability, Survey, TextFacts, TextPart
from depthcut.settings import PlanSettings
from tests.records_for_tests import make_scores, make_survey


def survey_of(samples: list[list[float]], layers: int, *, text: TextFacts | None = None) -> Survey:
    scope: Literal["block", "layer"] = "layer" if len(samples[0]) == layers else "block"
    found = make_survey(layers)
    return msgspec.structs.replace(
        found, scores=(make_scores(samples, layers, scope=scope),), text=text or found.text
    )


def stability_of(survey: Survey, **settings: object) -> Stability:
    found = plan_from_survey(survey, PlanSettings(**{"drop": 1, **settings})).stability  # type: ignore[arg-type]
    assert found is not None
    return found


def test_a_choice_that_every_sequence_makes_is_made_on_every_resample() -> None:
    found = stability_of(survey_of([[3.0, 1.0, 2.0]] * 5, 3))
    assert (found.share, found.overlap, found.rivals) == (1.0, 1.0, ())
    assert found.halves == (((1, 2),), ((1, 2),))


def test_the_share_is_the_probability_that_the_resampled_mean_agrees() -> None:
    # Layer 0 wins where the drawn noise is below its lead: 0.2 * sqrt(25) errors, 84 %.
    generator = random.Random(1)
    samples = [[generator.gauss(0, 1), 0.0, 9.0] for _ in range(25)]
    mean = sum(row[0] for row in samples) / 25
    samples = [[first - mean - 0.2, *rest] for first, *rest in samples]
    found = stability_of(survey_of(samples, 3))
    assert found.share == pytest.approx(0.84, abs=0.08)
    assert found.rivals[0].removed == ((1, 2),)
    assert found.share + found.rivals[0].share == 1
    assert found.overlap == found.share  # the rival shares no layer


def test_halves_and_texts_tell_their_own_choice() -> None:
    text = TextFacts(
        source="a, b",
        digest="",
        sequences=4,
        tokens=40,
        parts=tuple(
            TextPart(source=name, digest="", share=0.5, sequences=2, tokens=20) for name in "ab"
        ),
        order=bytes([0, 1, 0, 1]),
    )
    samples = [[0.0, 5.0, 9.0], [5.0, 0.0, 9.0], [0.0, 5.0, 9.0], [6.0, 0.0, 9.0]]
    found = stability_of(survey_of(samples, 3, text=text))
    assert [(each.source, each.removed) for each in found.texts] == [
        ("a", ((0, 1),)),
        ("b", ((1, 2),)),
    ]


def test_one_sequence_says_nothing_of_others() -> None:
    assert plan_from_survey(survey_of([[3.0, 1.0, 2.0]], 3), PlanSettings(drop=1)).stability is None


def test_a_hand_s_choice_has_no_stability() -> None:
    assert plan_from_survey(make_survey(6), PlanSettings(remove="2")).stability is None


def test_several_blocks_and_protected_layers_are_resampled_under_the_same_rules() -> None:
    survey = make_survey(8, sequences=6)
    found = stability_of(survey, drop=3, blocks=2, protect="0,4")
    for rival in found.rivals:
        assert len(rival.removed) <= 2
        assert not {0, 4} & {layer for block in rival.removed for layer in range(*block)}


def test_it_takes_no_time_for_thirty_layers_and_128_sequences() -> None:
    survey = make_survey(30, sequences=128)
    started = time.process_time()
    stability_of(survey, drop=7)
    assert time.process_time() - started < 20  # a bound against quadratic mistakes, not a speed
