"""What a search is asked for, resolved for a model."""

import math
import random
from dataclasses import dataclass

from depthcut.settings import SearchSettings


@dataclass(frozen=True)
class Asked:
    """Numbers of layers, and which layers may go."""

    counts: tuple[int, ...]
    """Numbers of layers to remove, ascending."""
    free: tuple[int, ...]
    """Layers that may go, ascending."""
    settings: SearchSettings

    @property
    def most(self) -> int:
        return self.counts[-1]

    @property
    def largest_block(self) -> int:
        """Layers in the largest block that is taken, or scored, at once."""
        return self.settings.largest_block or math.ceil(len(self.free) / 4)

    def generator(self) -> random.Random:
        """Seeded, so that a search repeats itself."""
        return random.Random(self.settings.seed)
