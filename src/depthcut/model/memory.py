"""Memory: what is free, what this process takes, and how its allocator treats what was freed."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from depthcut.launched import launched

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4


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
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


@contextlib.contextmanager
def keeping_freed(device: torch.device) -> Iterator[None]:
    """A context in which memory that was freed is kept for what comes next, on a roomy CPU.

    glibc gives each large tensor back at once, and the system clears its pages when the next step
    asks for it again: a seventh of the time of training SmolLM2. Pieces of other sizes leave holes,
    two thirds more memory there: so it is done where more is free than is taken, twice over. All is
    given back at the end.
    """
    library = _c_library()
    roomy = device.type == "cpu" and free_memory_bytes(device) > 2 * resident_bytes()
    if library is None or not roomy:
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:  # where glibc's own rule ends, which is off once anything was set
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


@cache
def _c_library() -> ctypes.CDLL | None:
    """glibc; None: another, whose allocator is not told so."""
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):
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
