import pytest

from depthcut.errors import SettingsError
from depthcut.settings import LoadSettings, PlanSettings, SurveySettings
from depthcut.surveying import criteria
from depthcut.surveying.inputs import refuse_unmeasured, survey_inputs


def test_a_plan_by_a_criterion_that_is_not_measured_is_refused_in_advance() -> None:
    refuse_unmeasured(SurveySettings(), PlanSettings())
    refuse_unmeasured(SurveySettings(criteria=("all",)), PlanSettings(criterion="cka"))
    with pytest.raises(SettingsError, match="by cka, the survey measures angular: add cka"):
        refuse_unmeasured(SurveySettings(criteria=("angular",)), PlanSettings(criterion="cka"))
    with pytest.raises(SettingsError, match="did you mean cka"):
        refuse_unmeasured(SurveySettings(), PlanSettings(criterion="kca"))


def test_a_plan_by_tokens_that_a_criterion_is_not_taken_at_is_refused_in_advance() -> None:
    settings = SurveySettings(criteria=("cka",))
    with pytest.raises(SettingsError, match="by cka at tokens last: it is taken at all only"):
        refuse_unmeasured(settings, PlanSettings(criterion="cka", tokens="last"))


def test_all_criteria_are_other_inputs_once_there_are_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, load = SurveySettings(criteria=("all",)), LoadSettings()
    before = survey_inputs("model", "text", settings, load)
    fewer = {name: each for name, each in criteria.CRITERIA.items() if name != "cka"}
    monkeypatch.setattr(criteria, "CRITERIA", fewer)
    assert survey_inputs("model", "text", settings, load) != before
