"""What a survey depends on, known before any model is loaded."""

from depthcut.records import inputs_digest
from depthcut.settings import LoadSettings, SurveySettings
from depthcut.surveying.criteria import CRITERIA


def survey_inputs(
    model_digest: str, text_digest: str, settings: SurveySettings, load: LoadSettings
) -> str:
    """Digest of a survey's inputs: settings, model, text, and which criteria there are."""
    return inputs_digest("survey", settings, load, model_digest, text_digest, sorted(CRITERIA))
