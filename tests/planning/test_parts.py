"""Plans by a criterion of attention or of the MLP alone."""

import pytest

from depthcut.errors import PlanError, SettingsError
from depthcut.planning import plan_from_survey
from depthcut.records import Survey
from depthcut.settings import PlanSettings
from tests.surveying.surveys_for_tests import make_sequences, survey
from tests.tiny import build_tiny


@pytest.fixture(scope="module")
def surveyed() -> Survey:
    criteria = ["attention-influence", "mlp-influence", "angular"]
    return survey(build_tiny("llama"), make_sequences(), criteria=criteria)


def lowest(surveyed: Survey, criterion: str, count: int) -> list[int]:
    scores = [row[0] for row in surveyed.find(criterion, "all").mean]
    return sorted(sorted(range(6), key=scores.__getitem__)[:count])


@pytest.mark.parametrize("part", ["attention", "mlp"])
def test_the_parts_that_score_lowest_go_and_all_layers_stay(surveyed: Survey, part: str) -> None:
    criterion = f"{part}-influence"
    plan = plan_from_survey(surveyed, PlanSettings(drop=3, criterion=criterion))
    assert [each.layer for each in plan.zeroed] == lowest(surveyed, criterion, 3)
    assert {each.part for each in plan.zeroed} == {part}
    assert plan.removed == ()
    assert plan.kept_layers == tuple(range(6))
    scores = surveyed.find(criterion, "all").mean
    assert plan.score == pytest.approx(sum(scores[each.layer][0] for each in plan.zeroed))
    assert len(plan.alternatives) == 5
    for other in plan.alternatives:
        assert len(other.zeroed) == 3
        assert other.removed == ()
        assert other.score >= plan.score
        assert other.difference.value == pytest.approx(other.score - plan.score)
    assert plan.warnings == ()


def test_a_part_is_protected_by_its_name_or_its_layer(surveyed: Survey) -> None:
    first, second = lowest(surveyed, "attention-influence", 2)
    settings = PlanSettings(
        drop=2, criterion="attention-influence", protect=f"{first}.attention,{second}.mlp"
    )
    gone = {each.layer for each in plan_from_survey(surveyed, settings).zeroed}
    assert first not in gone
    assert second in gone


def test_parts_named_by_hand_are_scored_by_their_criterion(surveyed: Survey) -> None:
    criterion = "mlp-influence"
    plan = plan_from_survey(surveyed, PlanSettings(remove="1-2.mlp", criterion=criterion))
    assert [each.layer for each in plan.zeroed] == [1, 2]
    assert plan.score is not None
    assert plan.alternatives
    for remove, given, scored in (
        ("1.attention", criterion, "mlp"),
        ("1", criterion, "mlp"),
        ("1.mlp,2.attention", criterion, "mlp"),
        ("1.mlp", "angular", "whole layers"),
    ):
        with pytest.raises(SettingsError, match=f"scores {scored}; name the model instead"):
            plan_from_survey(surveyed, PlanSettings(remove=remove, criterion=given))


def test_a_size_means_nothing_for_zeros(surveyed: Survey) -> None:
    with pytest.raises(SettingsError, match="zeros take as much room"):
        plan_from_survey(surveyed, PlanSettings(params="100k", criterion="mlp-influence"))


def test_more_parts_than_may_go_are_refused(surveyed: Survey) -> None:
    settings = PlanSettings(drop=4, criterion="mlp-influence", protect="0-2")
    with pytest.raises(PlanError, match="leaves the protected layers 0-2"):
        plan_from_survey(surveyed, settings)
