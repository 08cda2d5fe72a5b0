"""What made up for a cut, in closed form."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts, TextFacts
from depthcut.records.plan import Plan
from depthcut.settings import LoadSettings, RepairSettings


class RepairStep(Record, frozen=True, kw_only=True):
    """One solve: projections of a layer, on the states that the model gives with those before it.

    Errors are those of the residual stream that leaves the layer, against the untouched model's
    states h at the depth that it makes up for, on sequences that were not fitted: the root of the
    sum over tokens of |error|^2 / |h|, over the sum of |h|. 0 the same states, 1 as far off as no
    states.
    """

    layer: int
    """In layers of the model before the cut."""
    tensors: tuple[str, ...]
    """What was changed, as the result names it."""
    ridge: float | None
    """Strength of the ridge that did best on these sequences, in units of the mean of the diagonal
    of the inputs' second moments; None: the method has none."""
    condition: float
    """Of the system that was solved: its largest eigenvalue over its least."""
    error_before: float
    error_after: float
    """Of the model with the new weights run through the layer."""


class RepairedBlock(Record, frozen=True, kw_only=True):
    """A removed block, and what the layers beside it were given to make up for it."""

    start: int
    stop: int
    """The block [start, stop), in layers of the model before the cut."""
    steps: tuple[RepairStep, ...]
    """In the order in which they were solved: those of the layer before the block, then those of
    layers behind it, each towards the state that leaves it."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """What was changed, each once."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.tensors))

    @property
    def before(self) -> tuple[RepairStep, ...]:
        """Those of the layer before the block."""
        return tuple(step for step in self.steps if step.layer < self.start)

    @property
    def behind(self) -> tuple[RepairStep, ...]:
        """Those of layers behind it; none of a layer where they did not help."""
        return tuple(step for step in self.steps if step.layer >= self.stop)

    @property
    def error_before(self) -> float:
        """Where the block ended, of the cut alone behind the repairs of the blocks before."""
        return self.before[0].error_before

    @property
    def error_after(self) -> float:
        """Where the block ended, with the layer before it repaired."""
        return self.before[-1].error_after


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
