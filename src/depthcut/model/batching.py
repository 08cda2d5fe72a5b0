"""How many sequences fit in a forward pass."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from depthcut.launched import launched

if TYPE_CHECKING:
    from depthcut.model.loading import LoadedModel

_SHARE = 0.5
"""Of the free memory that a batch may take: the rest is for what nobody counts."""


def fitting_batch_size(
    loaded: "LoadedModel",
    context: int,
    *,
    bytes_per_token: int,
    reserved_bytes: int = 0,
    most: int = 32,
) -> int:
    """The largest power of two of sequences that half of the free memory holds, at least 1.

    Args:
        loaded: The model, already on its device.
        context: Tokens of each sequence.
        bytes_per_token: What the caller keeps for each token, over and above the activations of
            one layer, which are counted here.
        reserved_bytes: Of the free memory, for what is yet to be allocated whatever the size.
        most: Never more than this.
    """
    each = int(context * (activation_bytes(loaded) + bytes_per_token))
    free = max(0, free_memory_bytes(loaded.device) - reserved_bytes)
    fitting = int(free * _SHARE) // max(each, 1)
    return 1 << (max(1, min(fitting, most)).bit_length() - 1)


def activation_bytes(loaded: "LoadedModel") -> int:
    """What one layer computes on its way, for each token."""
    config = loaded.model.config.get_text_config()
    wide = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    element_bytes = next(loaded.model.parameters()).element_size()
    return int((4 * wide + 16 * config.hidden_size) * max(element_bytes, 2))


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can be allocated now, without swapping: of the GPU, or of the machine.

    Several processes on a machine have an equal part each.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(unused)
    free_bytes = _available() or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit = _group_limit()
    shared = free_bytes if limit is None else min(free_bytes, limit)
    return shared // launched().local_count


def total_memory_bytes() -> int:
    """All that the machine, or the container, could ever give."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return min(whole, int((Path("/sys/fs/cgroup") / limit).read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return whole


def resident_bytes() -> int:
    """Memory that this process takes now."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def peak_bytes() -> int | None:
    """The most that this process took since `forget_peak`; None: the system does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return None


def forget_peak() -> None:
    """Let `peak_bytes` begin anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def keep_few_kernels() -> None:
    """Let oneDNN keep few of the kernels that it compiles; it asks when it first multiplies.

    It makes one for each shape, 0.7 MB, and keeps two thousand: each length of a sequence and each
    number of tokens that an expert gets is a shape of its own.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "32")


def give_back_freed() -> None:
    """Hand memory that was freed back to the system, where its allocator would keep it."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    """The C library's own; only glibc has it."""
    try:
        return cast(Callable[[int], int], ctypes.CDLL(None).malloc_trim)
    except (OSError, AttributeError, TypeError):
        return None


def _available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return None


def _group_limit() -> int | None:
    """What a container's limit leaves."""
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return None
