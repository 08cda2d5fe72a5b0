"""The sequences of a healing, by number, and batches of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100
"""The label of a token that is not to be learned."""


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
