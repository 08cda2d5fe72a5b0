import os
from pathlib import Path

import pytest

from depthcut.benching.machine import cpu_name, usable_threads


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: A CPU @ 2.50GHz\n\nmodel name\t: B\n", "A CPU @ 2.50GHz"),
        ("processor\t: 0\nHardware\t: A board\n", "A board"),
    ],
)
def test_the_processor_is_named_as_the_system_names_it(
    content: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(content)
    assert cpu_name(tmp_path / "cpuinfo") == name


def test_a_system_that_does_not_tell_still_has_a_processor(tmp_path: Path) -> None:
    assert cpu_name(tmp_path / "none")
    (tmp_path / "empty").write_text("model name\t:\n")
    assert cpu_name(tmp_path / "empty")


def test_threads_are_those_that_torch_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert usable_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert usable_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= usable_threads() <= (os.cpu_count() or 1)
