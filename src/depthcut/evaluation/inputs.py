"""What an evaluation depends on, known before any model is loaded."""

from collections.abc import Sequence

from depthcut.evaluation.prompts import read_prompts
from depthcut.records import inputs_digest
from depthcut.settings import EvaluateSettings, LoadSettings


def evaluation_inputs(
    model_digests: Sequence[str], text_digest: str, settings: EvaluateSettings, load: LoadSettings
) -> str:
    """Digest of everything an evaluation depends on; the first model is the reference.

    The prompts count by what the file says, not by its name.

    Raises:
        SourceError: The file of prompts cannot be read.
        TextError: It holds no prompt, or is not UTF-8.
    """
    prompts = read_prompts(settings.prompts)
    return inputs_digest("evaluate", settings, load, model_digests, text_digest, prompts)
