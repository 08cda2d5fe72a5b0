import sys
import types
from pathlib import Path

import pytest

from depthcut.benching import meters as module
from depthcut.benching.meters import meters


def zone(powercap: Path, place: str, name: str, micro_joules: int) -> Path:
    folder = powercap / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{micro_joules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")
    return folder / "energy_uj"


def test_a_machine_without_meters_has_none(tmp_path: Path) -> None:
    assert meters(powercap=tmp_path / "nowhere") == ()
    (tmp_path / "intel-rapl:0").mkdir()
    assert meters(powercap=tmp_path) == ()


def test_packages_and_their_memory_count_and_what_lies_within_them_does_not(
    tmp_path: Path,
) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 500_000)
    zone(tmp_path, "intel-rapl:0:1", "dram", 2_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 9_000_000)
    zone(tmp_path, "intel-rapl-mmio:0", "package-0", 1_000_000)
    (meter,) = meters(powercap=tmp_path)
    assert meter.name == "CPU (RAPL)"
    assert meter.read() == (1.0, 2.0)


def test_a_counter_may_wrap(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 9_500_000)
    (meter,) = meters(powercap=tmp_path)
    before = meter.read()
    counter.write_text("250000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(0.75)


def test_counters_that_only_root_may_read_are_no_meter(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1).unlink()
    assert meters(powercap=tmp_path) == ()


def test_cards_are_read_through_nvml_where_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class NVMLError(Exception):
        pass

    nvml = types.ModuleType("pynvml")
    joules = {0: 1500, 1: 2500}
    nvml.NVMLError = NVMLError  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetTotalEnergyConsumption = joules.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(module, "_handle", lambda _, index: index)
    (meter,) = meters((0, 1), powercap=tmp_path)
    assert (meter.name, meter.read()) == ("GPU (NVML)", (1.5, 2.5))
    assert meters((), powercap=tmp_path) == ()

    def old(_: int) -> int:
        raise NVMLError("Not Supported")

    nvml.nvmlDeviceGetTotalEnergyConsumption = old  # type: ignore[attr-defined]
    assert meters((0,), powercap=tmp_path) == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert meters((0,), powercap=tmp_path) == ()
