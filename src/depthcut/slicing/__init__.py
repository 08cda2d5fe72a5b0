"""A plan and a checkpoint in, the checkpoint that the plan describes out: bytes, no torch."""

from depthcut.slicing.checkpoint import slice_checkpoint, slice_inputs
from depthcut.slicing.verify import verify_slice

__all__ = ["slice_checkpoint", "slice_inputs", "verify_slice"]
