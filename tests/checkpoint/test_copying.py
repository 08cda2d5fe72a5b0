"""Byte ranges from file to file, whatever the kernel can do."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthcut.checkpoint import copying
from depthcut.checkpoint.copying import ByteRange, copy_file, merge_ranges, write_ranges
from depthcut.errors import CheckpointError

CONTENT = bytes(i * 7 % 251 for i in range(10_000))
KERNEL_CALLS = [
    name
    for name in ("_by_copy_file_range", "_by_sendfile")
    if hasattr(os, name.removeprefix("_by_"))
]


def no_report(_: int) -> None:
    return None


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "source"
    file.write_bytes(CONTENT)
    return file


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    head=st.binary(max_size=20),
    spans=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), max_size=5),
)
def test_a_written_file_is_its_head_and_its_ranges(
    source: Path, head: bytes, spans: list[tuple[int, int]]
) -> None:
    target = source.with_name("target")
    target.unlink(missing_ok=True)
    ranges = [ByteRange(source, min(span), max(span)) for span in spans]
    reported: list[int] = []
    write_ranges(target, head, ranges, done=reported.append)
    expected = b"".join(CONTENT[each.start : each.stop] for each in ranges)
    assert target.read_bytes() == head + expected
    assert sum(reported) == len(expected)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, None])
@pytest.mark.parametrize("failing", [KERNEL_CALLS[:1], KERNEL_CALLS])
def test_where_the_kernel_cannot_another_way_is_taken(
    source: Path, monkeypatch: pytest.MonkeyPatch, failing: list[str], code: int | None
) -> None:
    def fail(*_: int) -> int:
        if code is None:
            return 0  # some network file systems say that nothing was copied
        raise OSError(code, os.strerror(code))

    for name in failing:
        monkeypatch.setattr(copying, name, fail)
    copy_file(source, source.with_name("target"))
    assert source.with_name("target").read_bytes() == CONTENT


def test_a_kernel_that_stops_halfway_is_continued(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = copying._by_copy_file_range, []

    def short(source: int, target: int, count: int, start: int) -> int:
        calls.append(start)
        if len(calls) == 4:
            raise OSError(errno.EINVAL, "no more")
        return real(source, target, min(count, 100), start)

    monkeypatch.setattr(copying, "_by_copy_file_range", short)
    copy_file(source, source.with_name("target"))
    assert source.with_name("target").read_bytes() == CONTENT
    assert calls == [0, 100, 200, 300]


def test_other_errors_are_not_swallowed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(copying, "_by_copy_file_range", full)
    with pytest.raises(OSError, match="full") as caught:
        copy_file(source, source.with_name("target"))
    assert caught.value.errno == errno.ENOSPC


def test_a_source_that_shrank_is_named(source: Path) -> None:
    with pytest.raises(CheckpointError, match=r"source ended at byte 10,000, 10,001 were expected"):
        write_ranges(
            source.with_name("target"), b"", [ByteRange(source, 0, 10_001)], done=no_report
        )


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(CheckpointError, match=r"cannot read .*missing"):
        copy_file(missing, tmp_path / "target")
    with pytest.raises(CheckpointError, match=r"cannot read .*missing"):
        write_ranges(tmp_path / "target", b"", [ByteRange(missing, 0, 1)], done=no_report)


def test_an_existing_target_is_not_touched(source: Path) -> None:
    with pytest.raises(FileExistsError):
        write_ranges(source, b"x", [], done=no_report)
    assert source.read_bytes() == CONTENT


def test_neighbours_are_joined_and_order_kept() -> None:
    a, b = Path("a"), Path("b")
    parts = [(a, 0, 2), (a, 2, 5), (a, 6, 7), (b, 7, 9), (b, 3, 4), (b, 4, 4)]
    merged = list(merge_ranges(ByteRange(*part) for part in parts))
    expected = [(a, 0, 5), (a, 6, 7), (b, 7, 9), (b, 3, 4)]
    assert merged == [ByteRange(*part) for part in expected]
    assert list(merge_ranges([])) == []
