import itertools
import math
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.errors import PlanError, RecordError, SettingsError
from depthcut.planning import (
    budget,
    paired_difference,
    plan_by_hand,
    plan_from_survey,
)
from depthcut.records import Scores, Survey, layer_set, layers_in_words, merged
from depthcut.settings import PlanSettings
from tests.records_for_tests import make_facts, make_scores, make_survey


def total(scores: Scores, layers: tuple[int, ...]) -> float:
    if scores.scope == "layer":
        return math.fsum(scores.mean[layer][0] for layer in layers)
    return math.fsum(scores.mean[start][stop - start - 1] for start, stop in merged(layers))


@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(2, 8),
    data=st.data(),
    criterion=st.sampled_from(["angular", "block-influence"]),
)
def test_the_choice_and_its_runners_up_are_those_of_an_exhaustive_search(
    seed: int, layers: int, data: st.DataObject, criterion: str
) -> None:
    survey = make_survey(layers, seed=seed)
    count = data.draw(st.integers(1, layers - 1))
    blocks = data.draw(st.integers(1, 4))
    protected = data.draw(st.sets(st.integers(0, layers - 1), max_size=2))
    settings = PlanSettings(
        drop=count, criterion=criterion, blocks=blocks, protect=",".join(map(str, protected))
    )
    scores = survey.find(criterion, "all")
    allowed = [
        layers_
        for layers_ in itertools.combinations(range(layers), count)
        if not protected & set(layers_)
        and (scores.scope == "layer" or len(merged(layers_)) <= blocks)
    ]
    if not allowed:
        with pytest.raises(PlanError, match="protect"):
            plan_from_survey(survey, settings)
        return
    expected = sorted((total(scores, each), each) for each in allowed)
    plan = plan_from_survey(survey, settings)
    assert plan.removed_layers == expected[0][1]
    assert plan.score == pytest.approx(expected[0][0])
    assert [each.score for each in plan.alternatives] == pytest.approx(
        [score for score, _ in expected[1:6]]
    )


def test_two_blocks_are_chosen_jointly_where_greedy_would_fail() -> None:
    # Greedy takes [1, 3), the best pair, and must then pay for a bad second block.
    cheap = {(1, 3): 0.1, (0, 2): 0.15, (3, 5): 0.15}
    samples = [
        [cheap.get((start, stop), 1.0) for start in range(6) for stop in range(start + 1, 7)]
    ]
    survey = msgspec.structs.replace(make_survey(6), scores=(make_scores(samples, 6),))
    found = plan_from_survey(survey, PlanSettings(drop=4, blocks=2))
    assert found.removed == ((0, 2), (3, 5))


def test_shares_are_rounded_down() -> None:
    assert budget(PlanSettings(drop="25%"), 30) == 7
    assert budget(PlanSettings(drop="50%"), 30) == 15
    assert budget(PlanSettings(drop="7"), 30) == 7
    assert budget(PlanSettings(keep=24), 30) == 6


@pytest.mark.parametrize("drop", ["0", 0, "1%", 6, "100%", "150%", 17])
def test_dropping_none_or_all_or_more_than_there_is_is_refused(drop: str | int) -> None:
    with pytest.raises(PlanError, match=r"of (the )?6"):
        plan_from_survey(make_survey(6), PlanSettings(drop=drop))


@pytest.mark.parametrize("drop", ["seven", "2.5", "-3", "%"])
def test_a_drop_that_is_no_number_says_how_to_write_one(drop: str) -> None:
    with pytest.raises(SettingsError, match="25%"):
        budget(PlanSettings(drop=drop), 6)


def test_exactly_one_budget_must_be_given() -> None:
    with pytest.raises(SettingsError, match="found none"):
        plan_from_survey(make_survey(), PlanSettings())
    with pytest.raises(SettingsError, match="drop and keep"):
        plan_from_survey(make_survey(), PlanSettings(drop=1, keep=2))


def test_params_removes_as_few_layers_as_reach_the_size() -> None:
    plan = plan_from_survey(make_survey(6), PlanSettings(params="4.5K"))  # 6500 now, 1000 a layer
    assert len(plan.removed_layers) == 2
    with pytest.raises(PlanError, match="ask for more"):
        plan_from_survey(make_survey(6), PlanSettings(params="1K"))


def test_hand_plans_name_both_ends_and_records_are_half_open() -> None:
    plan = plan_by_hand(make_facts(30), PlanSettings(remove="12-18, 22"))
    assert plan.removed == ((12, 19), (22, 23))
    assert plan.kept_layers == (*range(12), 19, 20, 21, *range(23, 30))
    assert plan.words == "layers 12–18 and 22 (8 layers)"
    assert layers_in_words([(22, 23)]) == "layer 22 (1 layer)"


@pytest.mark.parametrize(("remove", "problem"), [("30", "no layer 30"), ("0-29", "at least one")])
def test_hand_plans_out_of_range_or_of_all_layers_are_refused(remove: str, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        plan_by_hand(make_facts(30), PlanSettings(remove=remove))


def test_an_empty_hand_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="none of the"):
        plan_by_hand(make_facts(30), PlanSettings(remove=""))


@pytest.mark.parametrize("text", ["a", "3-", "5-3", "-1", "1..3"])
def test_layer_lists_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="12-18,22"):
        layer_set(text, 30)


def test_a_protected_layer_cannot_be_removed_by_hand() -> None:
    with pytest.raises(PlanError, match="protected"):
        plan_by_hand(make_facts(30), PlanSettings(remove="3-5", protect="4"))


def test_first_two_and_last_layers_bring_warnings() -> None:
    assert not plan_by_hand(make_facts(), PlanSettings(remove="2-4")).warnings
    assert len(plan_by_hand(make_facts(), PlanSettings(remove="1,5")).warnings) == 2


def test_paired_differences_use_the_same_sequences() -> None:
    # The sequences differ much, the two layers always by 1: the paired error is 0.
    scores = make_scores([[1.0, 2.0], [11.0, 12.0], [21.0, 22.0]], 2, scope="layer")
    difference = paired_difference(scores, [(1, 2)], [(0, 1)])
    assert difference.value == pytest.approx(1.0)
    assert difference.stderr == pytest.approx(0.0, abs=1e-9)


def test_an_unknown_criterion_names_those_there_are() -> None:
    with pytest.raises(RecordError, match="did you mean angular"):
        plan_from_survey(make_survey(), PlanSettings(drop=1, criterion="anglar"))


def test_a_hand_choice_with_a_survey_stands_beside_the_best_ones() -> None:
    survey = make_survey(6)
    best = plan_from_survey(survey, PlanSettings(drop=2))
    hand = plan_from_survey(survey, PlanSettings(remove="2-3"))
    assert hand.removed == ((2, 4),)
    assert hand.alternatives[0].removed == best.removed or best.removed == hand.removed
    assert all(each.difference.stderr > 0 for each in hand.alternatives)


def survey_of_small_blocks(layers: int = 8, largest: int = 3) -> Survey:
    """One criterion that scores blocks of up to `largest` layers only."""
    scores = make_survey(layers).find("angular", "all")
    every = array("f", scores.per_sequence)
    width = layers * (layers + 1) // 2
    columns = [
        column
        for column, (start, stop) in enumerate(itertools.combinations(range(layers + 1), 2))
        if stop - start <= largest
    ]
    samples = [[every[row + each] for each in columns] for row in range(0, len(every), width)]
    short = make_scores(samples, layers, largest=largest)
    return msgspec.structs.replace(make_survey(layers), scores=(short,))


def test_blocks_that_a_criterion_does_not_score_are_not_chosen() -> None:
    survey = survey_of_small_blocks()
    whole = make_survey(8).find("angular", "all")
    plan = plan_from_survey(survey, PlanSettings(drop=5, blocks=2))
    assert sorted(stop - start for start, stop in plan.removed) == [2, 3]
    assert plan.score == pytest.approx(total(whole, plan.removed_layers))
    for each in plan.alternatives:
        assert max(stop - start for start, stop in each.removed) <= 3
        expected = paired_difference(whole, each.removed, plan.removed)
        assert each.difference.value == pytest.approx(expected.value)
        assert each.difference.stderr == pytest.approx(expected.stderr)


def test_more_layers_than_a_criterion_scores_are_refused_with_what_helps() -> None:
    match = (
        r"no choice of 5 of 8 layers in at most 1 block\(s\): angular scores blocks of up to 3 "
        r"layers; survey with a higher --largest-block, allow more --blocks"
    )
    with pytest.raises(PlanError, match=match):
        plan_from_survey(survey_of_small_blocks(), PlanSettings(drop=5))


def test_a_size_is_reached_without_asking_for_more_than_is_scored() -> None:
    plan = plan_from_survey(survey_of_small_blocks(), PlanSettings(params="6.5K"))
    assert len(plan.removed_layers) == 2
    with pytest.raises(PlanError, match="no choice of 4 of 8 layers"):
        plan_from_survey(survey_of_small_blocks(), PlanSettings(params="3K"))


def test_a_choice_of_the_hand_beyond_what_is_scored_has_no_score_and_says_so() -> None:
    plan = plan_from_survey(survey_of_small_blocks(), PlanSettings(remove="2-6"))
    assert plan.removed == ((2, 7),)
    assert plan.score is None
    assert plan.alternatives == ()
    assert plan.warnings == ("has no score: angular scores blocks of up to 3 layers",)
