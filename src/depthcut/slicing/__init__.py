"""A plan and a checkpoint in, the checkpoint that the plan describes out: bytes, no torch."""

from depthcut.slicing.checkpoint import slice_checkpoint, slice_inputs
from depthcut.slicing.inspect import inspect_checkpoint, inspect_gguf
from depthcut.slicing.verify import verify_slice

__all__ = [
    "inspect_checkpoint",
    "inspect_gguf",
    "slice_checkpoint",
    "slice_inputs",
    "verify_slice",
]
