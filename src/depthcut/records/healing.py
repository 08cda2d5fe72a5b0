"""What was trained after a cut."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts, TextFacts
from depthcut.settings import HealSettings, LoadSettings


class HealRecord(Record, frozen=True, kw_only=True):
    """Lies in a healed checkpoint as depthcut.json."""

    kind: Literal["heal"] = "heal"
    origin: Origin
    model: ModelFacts
    """What was trained."""
    text: TextFacts
    settings: HealSettings
    load: LoadSettings
    trained_parameters: int
    trained_tokens: int
    losses: tuple[tuple[int, float], ...]
    """(step, mean next-token loss in nats since the last entry)."""
    result: ModelFacts
