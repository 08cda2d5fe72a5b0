"""Text that a model wrote to be calibrated on."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts
from depthcut.settings import LoadSettings, OwnTextSettings


class OwnText(Record, frozen=True, kw_only=True):
    """A file of a model's own generations."""

    kind: Literal["own-text"] = "own-text"
    origin: Origin
    model: ModelFacts
    settings: OwnTextSettings
    load: LoadSettings
    source: str
    """The file."""
    digest: str
    """SHA-256 of its bytes, as a survey on it will say."""
    documents: int
    tokens: int
    """Generated, end tokens among them."""
    cut: int
    """Documents that were cut at `new_tokens`; the others came to an end by themselves."""
