"""Which device and dtype a model runs in."""

import platform
from functools import cache
from pathlib import Path

import torch

from depthcut.errors import SettingsError
from depthcut.launched import launched
from depthcut.settings import DType

_FAST_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""Flags of x86 and Arm processors that compute in bfloat16."""


def choose_device(wanted: str) -> torch.device | None:
    """The device that a setting names, auto resolved; None: spread over all ("map").

    Of several processes each takes a GPU of its own, unless one is named.

    Raises:
        SettingsError: Not a device, or one that this machine or this torch lacks.
    """
    if wanted == "map":
        if launched().count > 1:
            raise SettingsError(
                "device map spreads a model over all GPUs for one process: start it without "
                "accelerate launch, or choose --device auto, a GPU for each process"
            )
        return None
    if wanted == "auto":
        if torch.cuda.is_available():
            return _own_gpu()
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise SettingsError(f"no device {wanted!r}: choose auto, cpu, cuda, cuda:1, mps or map")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            f"device {wanted} was asked for, but torch {torch.__version__} sees no CUDA GPU: "
            "choose --device cpu, or install torch for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SettingsError(f"device {wanted} was asked for, but there are {count} (from cuda:0)")
    if wanted == "cuda":
        return _own_gpu()
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SettingsError("device mps was asked for, but torch sees no Apple GPU: choose cpu")
    return device


def _own_gpu() -> torch.device:
    """The GPU, or that of this process."""
    place, count = launched(), torch.cuda.device_count()
    if place.count == 1:
        return torch.device("cuda")
    if place.local_rank >= count:
        raise SettingsError(
            f"{place.local_count} processes on a machine with {count} GPUs: start as many as there "
            "are GPUs, or let them share one with --device cuda:0"
        )
    return torch.device("cuda", place.local_rank)


def choose_dtype(
    wanted: DType, checkpoint: torch.dtype | None, device: torch.device | None
) -> torch.dtype | None:
    """The dtype to compute in; None: whatever the checkpoint's own loader decides.

    auto keeps the checkpoint's dtype, except half precision where the device is slow at it.

    Args:
        wanted: The setting.
        checkpoint: Of most of the weights; None: none that torch computes in.
        device: Where the model will run; None: spread over GPUs.
    """
    if wanted != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[wanted]
    if checkpoint not in (torch.bfloat16, torch.float16):
        return checkpoint
    kind = device.type if device else ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cpu":
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    if kind == "cuda" and checkpoint == torch.bfloat16:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return checkpoint


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices itself, not by way of float32."""
    if platform.system() != "Linux":
        return False
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not _FAST_BF16.isdisjoint(flags.split())
    return False
