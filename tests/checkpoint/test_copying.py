"""Byte ranges from file to file, through one buffer."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthcut.checkpoint.copying import (
    BLOCK_BYTES,
    ByteRange,
    copy_file,
    link_file,
    merge_ranges,
    write_ranges,
)
from depthcut.errors import CheckpointError

CONTENT = bytes(i * 7 % 251 for i in range(10_000))


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


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_short_writes_and_reads_are_continued(
    source: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    write, preadv = os.write, os.preadv
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:most]))
    monkeypatch.setattr(
        os, "preadv", lambda handle, into, at: preadv(handle, [into[0][: 3 * most]], at)
    )
    copy_file(source, source.with_name("target"))
    monkeypatch.undo()
    assert source.with_name("target").read_bytes() == CONTENT


def test_more_than_a_buffer_is_copied_and_written_back_early(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 11 + b"the rest"
    (tmp_path / "source").write_bytes(content)
    reported: list[int] = []
    ranges = [ByteRange(tmp_path / "source", 1, len(content))]
    write_ranges(tmp_path / "target", b"head", ranges, done=reported.append)
    assert (tmp_path / "target").read_bytes() == b"head" + content[1:]
    assert len(reported) == 12


def test_a_full_disk_is_not_swallowed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="full") as caught:
        copy_file(source, source.with_name("target"))
    assert caught.value.errno == errno.ENOSPC


def test_a_source_that_fails_is_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not an OutputError: another place for the output would not help.
    def fails(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(CheckpointError, match=r"cannot read .*source: Input/output error"):
        copy_file(source, source.with_name("target"))


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


def cloning(source: int, start: int, length: int, target: int, at: int) -> bool:
    """What the ioctl does, with its rules."""
    size = os.fstat(source).st_size
    assert start % BLOCK_BYTES == at % BLOCK_BYTES == 0
    assert length % BLOCK_BYTES == 0
    assert os.fstat(target).st_size >= at, "a hole would be left"
    os.pwrite(target, os.pread(source, length or size, start), at)
    return True


@given(
    parts=st.lists(st.tuples(st.integers(0, 9_999), st.integers(0, 9_999)), max_size=6),
    head=st.integers(0, 9_000),
    aligned=st.booleans(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_cloned_blocks_and_copied_rests_make_the_same_file(
    source: Path, parts: list[tuple[int, int]], head: int, aligned: bool
) -> None:
    ranges = [ByteRange(source, min(part), max(part)) for part in parts]
    if ranges and aligned:  # as the slicer pads its headers
        head += (ranges[0].start - head) % BLOCK_BYTES
    target = source.with_name("cloned")
    counted: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcut.checkpoint.copying._clone_range", cloning)
        write_ranges(target, b"h" * head, ranges, done=counted.append, share=True)
    found = target.read_bytes()
    target.unlink()
    assert found == b"h" * head + b"".join(CONTENT[each.start : each.stop] for each in ranges)
    assert sum(counted) == sum(each.stop - each.start for each in ranges)


def test_without_cloning_a_linked_file_is_a_hard_link(source: Path) -> None:
    target = source.with_name("target")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("depthcut.checkpoint.copying._clone_range", lambda *_: False)
        link_file(source, target)
    assert target.samefile(source)


def test_a_link_through_a_symbolic_link_meets_the_file_itself(source: Path) -> None:
    (source.with_name("pointer")).symlink_to(source)
    link_file(source.with_name("pointer"), source.with_name("target"))
    assert not source.with_name("target").is_symlink()
    assert source.with_name("target").read_bytes() == CONTENT
