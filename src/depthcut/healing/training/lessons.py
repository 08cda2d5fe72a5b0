"""What a model is to learn, and how much of it at once."""

from dataclasses import dataclass

from depthcut.healing.losses.objective import Objective
from depthcut.healing.rows import Rows
from depthcut.settings import HealSettings


@dataclass(frozen=True)
class Lesson:
    """What a model is to learn."""

    rows: Rows
    objective: Objective
    settings: HealSettings


@dataclass(frozen=True)
class Pace:
    """How a step is made of forward passes."""

    micro_batch_size: int
    """Sequences per forward pass on each device."""
    accumulate: int
    """Forward passes per step on each device."""
    recompute: bool = False
    """Activations are computed again instead of kept."""
