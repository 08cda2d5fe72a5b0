"""What a search depends on, known before any model is loaded."""

from depthcut.records import inputs_digest
from depthcut.settings import LoadSettings, SearchSettings


def search_inputs(
    model_digest: str, text_digest: str, settings: SearchSettings, load: LoadSettings
) -> str:
    """Digest of a search's inputs: settings, model and text."""
    return inputs_digest("search", settings, load, model_digest, text_digest)
