"""What a survey depends on, known before any model is loaded."""

from depthcut.errors import SettingsError
from depthcut.records import inputs_digest
from depthcut.settings import LoadSettings, PlanSettings, SurveySettings
from depthcut.surveying.criteria import CRITERIA, chosen


def survey_inputs(
    model_digest: str, text_digest: str, settings: SurveySettings, load: LoadSettings
) -> str:
    """Digest of a survey's inputs: settings, model, text, and the criteria that they name.

    Raises:
        SettingsError: No such criterion.
    """
    criteria = list(chosen(settings.criteria))
    return inputs_digest("survey", settings, load, model_digest, text_digest, criteria)


def refuse_unmeasured(settings: SurveySettings, plan: PlanSettings) -> None:
    """Refuse a plan by a criterion that the survey will not measure, before it is made.

    Raises:
        SettingsError: The criterion is not among the survey's, or not taken at these tokens.
    """
    asked = chosen(settings.criteria)
    chosen([plan.criterion])
    if plan.criterion not in asked:
        raise SettingsError(
            f"the plan ranks layers by {plan.criterion}, the survey measures {', '.join(asked)}: "
            f"add {plan.criterion} to the survey's criteria"
        )
    if plan.tokens not in (known := CRITERIA[plan.criterion].tokens):
        raise SettingsError(
            f"the plan ranks layers by {plan.criterion} at tokens {plan.tokens}: it is taken at "
            f"{' or '.join(known)} only"
        )
