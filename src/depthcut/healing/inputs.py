"""What a healing depends on and needs, known before any model is loaded."""

import msgspec

from depthcut.records import inputs_digest
from depthcut.settings import HealSettings, LoadSettings


def heal_inputs(
    model_digest: str, text_digest: str, settings: HealSettings, load: LoadSettings
) -> str:
    """Digest of everything that the healed weights depend on."""
    return inputs_digest("heal", settings, load, model_digest, text_digest)


def as_needed(settings: HealSettings) -> HealSettings:
    """The same settings, with no more tokens to read than the steps can use.

    For reading the text only: an endless data set is not read to its end.
    """
    sequences = settings.steps * settings.batch_size * settings.accumulate
    used = max(2, sequences * settings.context)
    return msgspec.structs.replace(settings, tokens=min(settings.tokens, used))
