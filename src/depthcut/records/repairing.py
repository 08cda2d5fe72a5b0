"""What made up for a cut, in closed form."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts, TextFacts
from depthcut.records.plan import Plan
from depthcut.settings import LoadSettings, RepairSettings


def error_words(settings: RepairSettings) -> str:
    """What the errors of a repair are: `RepairStep` says how they are taken."""
    if settings.method == "norm":
        return "the error of what the norm gives"
    if settings.method == "linear-cosine":
        return "the error of the states' directions"
    return "the error of the states"


class RepairStep(Record, frozen=True, kw_only=True):
    """One change of a layer's tensors, on the states that the model gives with those before it.

    Errors are those of the residual stream that leaves the layer, against the untouched model's
    states h at the depth that it makes up for, on sequences that were not fitted: the root of the
    sum over tokens of |error|^2 / |h|, over the sum of |h|. 0 the same states, 1 as far off as no
    states. Of the gain of a norm: those of what the norm gives, against what it gives in the
    untouched model. Of a map by cosines: the sines of the angles between the states, as the root of
    the sum of s^2 / c over that of 1 / c, with the cosines c (those below 0.1 are taken as 0.1).
    """

    layer: int
    """In layers of the model before the cut."""
    tensors: tuple[str, ...]
    """What was changed, as the result names it."""
    ridge: float | None
    """Strength of the ridge that did best on these sequences, in units of the mean of the diagonal
    of the inputs' second moments; None: the method has none."""
    condition: float | None
    """Of the system that was solved: its largest eigenvalue over its least; None: none was."""
    strength: float | None = None
    """Of a merge, the one that did best on these sequences: what the differences of the removed
    layers' tensors were multiplied by; None: nothing was merged."""
    error_before: float
    error_after: float
    """Of the model with the new weights run through the layer."""


class RepairedBlock(Record, frozen=True, kw_only=True):
    """A removed block, and what the layers beside it were given to make up for it."""

    start: int
    stop: int
    """The block [start, stop), in layers of the model before the cut."""
    steps: tuple[RepairStep, ...]
    """In their order: those of the layer that makes up for the block itself, then those of layers
    behind it, each towards the state that leaves it."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What was changed, each once."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.tensors))

    @property
    def first(self) -> tuple[RepairStep, ...]:
        """Those of the layer that makes up for the block itself: the one before it; of the gain of
        a norm, the one behind."""
        return tuple(step for step in self.steps if step.layer == self.steps[0].layer)

    @property
    def behind(self) -> tuple[RepairStep, ...]:
        """Those of further layers behind it; none of a layer where they did not help."""
        return self.steps[len(self.first) :]

    @property
    def error_before(self) -> float:
        """Where the block ended, of the cut alone behind the repairs of the blocks before."""
        return self.first[0].error_before

    @property
    def error_after(self) -> float:
        """Where the block ended, with that layer repaired."""
        return self.first[-1].error_after


class RepairRecord(Record, frozen=True, kw_only=True):
    """Lies in a repaired checkpoint as depthcut.json."""

    kind: Literal["repair"] = "repair"
    origin: Origin
    plan: Plan
    parent: ModelFacts
    """What was cut."""
    text: TextFacts
    settings: RepairSettings
    load: LoadSettings
    fitted_tokens: int
    held_out_tokens: int
    """Of every eighth sequence: they judge, and choose the ridges."""
    blocks: tuple[RepairedBlock, ...]
    result: ModelFacts
