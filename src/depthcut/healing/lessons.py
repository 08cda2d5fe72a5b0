"""What a model is to learn, and how much of it at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from depthcut.healing.objective import IGNORED, Objective
from depthcut.settings import HealSettings


@dataclass(frozen=True)
class Rows:
    """What is trained on, and what is held out to judge."""

    trained: tuple[Tensor, ...]
    """Token ids, 1-D int64, of any lengths. They have the numbers 0, 1, ..."""
    held_out: tuple[Tensor, ...] = ()
    """They have the numbers behind those."""
    answers: tuple[Tensor, ...] = ()
    """Of both in order: which tokens are to be learned, bool; empty: all."""

    def row(self, number: int) -> dict[str, Any]:
        """A sequence with its number."""
        behind = number - len(self.trained)
        ids = self.trained[number] if behind < 0 else self.held_out[behind]
        learned = self.answers[number] if self.answers else torch.ones_like(ids, dtype=torch.bool)
        return {"input_ids": ids, "learned": learned, "number": number}


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


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Rows as a batch, padded on the right."""
    ids = [row["input_ids"] for row in rows]
    lengths = torch.tensor([len(each) for each in ids])
    padded = pad_sequence(ids, batch_first=True, padding_value=0)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    learned = pad_sequence([row["learned"] for row in rows], batch_first=True, padding_value=False)
    labels = padded.masked_fill(~learned, IGNORED)
    labels[:, 0] = IGNORED  # nothing is before it
    return {
        "input_ids": padded,
        "attention_mask": mask.long(),
        "labels": labels,
        "number": torch.tensor([row["number"] for row in rows]),
    }
