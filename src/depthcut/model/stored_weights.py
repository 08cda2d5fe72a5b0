"""Weights changed where they lie in a checkpoint's files, one tensor in memory at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from depthcut.checkpoint.folder import Checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import ArchitectureError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}


def find_weight(checkpoint: Checkpoint, name: str, shape: Sequence[int]) -> TensorEntry:
    """Where the tensor lies that is to be changed.

    A checkpoint of the bare decoder leaves out the first part of the torch path
    (`h.0.attn.c_attn.weight` for `transformer.h.0.attn.c_attn.weight`).

    Args:
        checkpoint: Whose files are searched.
        name: As the model names it when it is saved.
        shape: Of what is to be added or put there.

    Raises:
        ArchitectureError: No such tensor, another shape, or a type that holds no plain numbers
            (quantised checkpoints).
    """
    entry = checkpoint.tensors.get(name) or checkpoint.tensors.get(name.partition(".")[2])
    if entry is None:
        raise ArchitectureError(
            f"{checkpoint.folder} has no tensor {name}: its layout differs from the model's in "
            "memory; load it and save it with save_pretrained first"
        )
    if entry.dtype not in DTYPES:
        raise ArchitectureError(
            f"{checkpoint.folder}: {name} is stored as {entry.dtype}; only "
            f"{', '.join(DTYPES)} can be changed, so start from the checkpoint before quantisation"
        )
    if tuple(shape) != entry.shape:
        raise ArchitectureError(
            f"{checkpoint.folder}: {name} has shape {entry.shape}, in memory it has "
            f"{tuple(shape)}; the layout differs from the model's in memory"
        )
    return entry


def read_weight(entry: TensorEntry) -> Tensor:
    """The tensor as its file holds it."""
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        content = bytearray(file.read(entry.size_bytes))
    return torch.frombuffer(content, dtype=DTYPES[entry.dtype]).reshape(entry.shape)


def write_weight(entry: TensorEntry, weight: Tensor) -> None:
    """Put a tensor of the same shape in its place in the file, rounded to the file's dtype.

    Args:
        entry: The tensor, in a file that may be changed.
        weight: What shall stand there.
    """
    stored = weight.detach().to("cpu", DTYPES[entry.dtype]).contiguous()
    with entry.file.open("r+b") as file:
        file.seek(entry.start)
        file.write(stored.view(torch.uint8).numpy().tobytes())


def add_to_weight(entry: TensorEntry, delta: Tensor) -> None:
    """Add to one tensor in its file: in float32 (float64 weights in float64), rounded once.

    Args:
        entry: The tensor, in a file that may be changed.
        delta: What to add, float32, in the tensor's own shape.
    """
    before = read_weight(entry)
    wide = torch.promote_types(before.dtype, torch.float32)
    write_weight(entry, before.to(wide) + delta.to(wide))
