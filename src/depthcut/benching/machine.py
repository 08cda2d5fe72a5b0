"""What a machine says of its processor."""

import os
import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_KEYS = ("model name", "Model", "Hardware", "cpu model", "Processor")


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's model name, as far as the system tells."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    values: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    named = next((values[key] for key in _KEYS if values.get(key)), "")
    return named or platform.processor() or platform.machine() or "unknown"


def usable_threads() -> int:
    """As many as torch takes when nobody asks: OMP_NUM_THREADS, else every CPU for this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked):
        return int(asked)
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
