"""What an evaluation and its parts depend on, known before any model is loaded."""

from collections.abc import Sequence

from depthcut.evaluation.benchmarks.asked import definitions_digest
from depthcut.evaluation.prompts import read_prompts
from depthcut.records import inputs_digest
from depthcut.settings import EvaluateSettings, LoadSettings
from depthcut.version import __version__


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
    tasks = definitions_digest(settings) if settings.tasks else ""
    return inputs_digest("evaluate", settings, load, model_digests, text_digest, prompts, tasks)


def text_key(
    model_digests: Sequence[str], text_digest: str, settings: EvaluateSettings, load: LoadSettings
) -> str:
    """Digest of what the judgement of all models on a text depends on."""
    reading = [
        str(getattr(settings, name)) for name in ("columns", "packing", "part", "context", "tokens")
    ]
    return inputs_digest("text", __version__, load, model_digests, text_digest, reading)


def writing_key(
    model_digests: Sequence[str],
    prompts: Sequence[str],
    settings: EvaluateSettings,
    load: LoadSettings,
) -> str:
    """Digest of what the generations of all models depend on."""
    new_tokens = str(settings.new_tokens)
    return inputs_digest("writing", __version__, load, model_digests, prompts, new_tokens)
