"""What was trained after a cut."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts, TextFacts
from depthcut.settings import HealSettings, LoadSettings


class HealJudgement(Record, frozen=True, kw_only=True):
    """A look at text that was held out, on the way."""

    step: int
    """Steps that were done; 0: before any."""
    loss: float
    """What training makes small, mean over tokens, nats."""
    next_token: float
    """Minus log-probability of the text, mean over tokens, nats."""


class HealRecord(Record, frozen=True, kw_only=True):
    """Lies in a healed checkpoint as depthcut.json."""

    kind: Literal["heal"] = "heal"
    origin: Origin
    model: ModelFacts
    """What was trained."""
    teacher: ModelFacts | None = None
    text: TextFacts
    settings: HealSettings
    load: LoadSettings
    trained_parameters: int
    trained_tokens: int
    """Padding not among them; each time that a token went through the model counts."""
    micro_batch_size: int
    """Sequences per forward pass on each device."""
    devices: int
    starts: int
    """Processes that it took, one after another: 1 unless it was killed and went on."""
    training_seconds: float
    """Of all of them."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean of what training makes small since the last entry, nats)."""
    judgements: tuple[HealJudgement, ...] = ()
    held_out_tokens: int
    best_step: int
    """After which the weights are the result's."""
    stopped_early: bool = False
    result: ModelFacts
