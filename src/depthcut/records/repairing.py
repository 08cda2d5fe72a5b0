"""What made up for a cut, in closed form."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.facts import ModelFacts, TextFacts
from depthcut.records.plan import Plan
from depthcut.settings import LoadSettings, RepairSettings


class RepairedBlock(Record, frozen=True, kw_only=True):
    """A removed block, and what the layer before it was given to make up for it.

    Errors are those of the residual stream where the block ended, against the untouched model's
    states h, on sequences that were not fitted: the root of the sum over tokens of |error|^2 / |h|,
    over the sum of |h|. 0 the same states, 1 as far off as no states.
    """

    start: int
    stop: int
    """The block [start, stop), in layers of the model before the cut."""
    tensors: tuple[str, ...]
    """What was changed, as the result names it."""
    ridge: float | None
    """Strength of the ridge that did best on these sequences, in units of the mean of the diagonal
    of the inputs' second moments; None: the method has none."""
    condition: float
    """Of the system that was solved: its largest eigenvalue over its least."""
    error_before: float
    """Of the cut alone, behind the repairs before this one."""
    error_after: float


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
    """Of every eighth sequence: they judge, and choose the ridge."""
    blocks: tuple[RepairedBlock, ...]
    result: ModelFacts
