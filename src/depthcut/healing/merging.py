"""Adds to weights where they lie in a checkpoint's files, one tensor in memory at a time."""

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


def find_weight(checkpoint: Checkpoint, name: str, delta: Tensor) -> TensorEntry:
    """Where the tensor lies that `delta` is to be added to.

    A checkpoint of the bare decoder leaves out the first part of the torch path
    (`h.0.attn.c_attn.weight` for `transformer.h.0.attn.c_attn.weight`).

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
            f"{checkpoint.folder}: {name} is stored as {entry.dtype}; healing merges into "
            f"{', '.join(DTYPES)} only, so start from the checkpoint before quantisation"
        )
    if tuple(delta.shape) != entry.shape:
        raise ArchitectureError(
            f"{checkpoint.folder}: {name} has shape {entry.shape}, its adapter "
            f"{tuple(delta.shape)}; the layout differs from the model's in memory"
        )
    return entry


def add_to_weight(entry: TensorEntry, delta: Tensor) -> None:
    """Add to one tensor in its file: in float32 (float64 weights in float64), rounded once.

    Args:
        entry: The tensor, in a file that may be changed.
        delta: What to add, float32, in the tensor's own shape.
    """
    dtype = DTYPES[entry.dtype]
    wide = torch.promote_types(dtype, torch.float32)
    with entry.file.open("r+b") as file:
        file.seek(entry.start)
        content = bytearray(file.read(entry.size_bytes))
        before = torch.frombuffer(content, dtype=dtype).reshape(entry.shape)
        after = (before.to(wide) + delta.to(wide)).to(dtype).contiguous()
        file.seek(entry.start)
        file.write(after.view(torch.uint8).numpy().tobytes())
