"""Adds to weights where they lie in a checkpoint's files."""

import torch
from torch import Tensor

from depthcut.checkpoint.headers import TensorEntry
from depthcut.model.stored_weights import read_weight, write_weight


def add_to_weight(entry: TensorEntry, delta: Tensor) -> None:
    """Add to one tensor in its file: in float32 (float64 weights in float64), rounded once.

    Args:
        entry: The tensor, in a file that may be changed.
        delta: What to add, float32, in the tensor's own shape.
    """
    before = read_weight(entry)
    wide = torch.promote_types(before.dtype, torch.float32)
    write_weight(entry, before.to(wide) + delta.to(wide))
