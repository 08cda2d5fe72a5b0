"""Energy, where the machine counts it: RAPL of the CPU, NVML of NVIDIA's GPUs. Never guessed."""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Meter:
    """Something that counts energy."""

    name: str
    read: Callable[[], tuple[float, ...]]
    """What each of its counters stands at, in joules."""
    wraps: tuple[float | None, ...]
    """Where each counter begins at zero again, in joules; None: nowhere."""

    def joules(self, before: tuple[float, ...], after: tuple[float, ...]) -> float:
        """What was used between two readings; each counter may have wrapped once."""
        total = 0.0
        for start, stop, wrap in zip(before, after, self.wraps, strict=True):
            used = stop - start
            total += used + wrap if used < 0 and wrap is not None else max(used, 0.0)
        return total


def meters(gpus: Iterable[int] = (), *, powercap: Path = POWERCAP) -> tuple[Meter, ...]:
    """The meters of this machine that can be read.

    Args:
        gpus: The CUDA devices that compute.
        powercap: Where Linux lists RAPL's zones.
    """
    found = (_rapl(powercap), _nvml(tuple(gpus)))
    return tuple(each for each in found if each is not None)


def _rapl(powercap: Path) -> Meter | None:
    """Packages and, where it is counted apart, their memory; other zones lie within these."""
    files, wraps = [], []
    try:
        for zone in sorted(powercap.glob("*rapl*:*")):
            name = (zone / "name").read_text().strip()
            if not name.startswith(("package", "dram")) or "mmio" in zone.name:
                continue
            files.append(zone / "energy_uj")
            wraps.append(int((zone / "max_energy_range_uj").read_text()) / 1e6)

        def read() -> tuple[float, ...]:
            return tuple(int(file.read_text()) / 1e6 for file in files)

        read()  # only root may, on most machines
    except (OSError, ValueError):
        return None
    return Meter("CPU (RAPL)", read, tuple(wraps)) if files else None


def _nvml(gpus: tuple[int, ...]) -> Meter | None:
    if not gpus:
        return None
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handles = [_handle(nvml, index) for index in gpus]

        def read() -> tuple[float, ...]:
            return tuple(nvml.nvmlDeviceGetTotalEnergyConsumption(each) / 1e3 for each in handles)

        read()  # cards before Volta do not count
    except (nvml.NVMLError, AttributeError):
        return None
    return Meter("GPU (NVML)", read, (None,) * len(handles))


def _handle(nvml: Any, index: int) -> Any:
    """By the card's UUID: CUDA may number the cards otherwise, and see only some."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
