"""Bytes from one file to another without passing through this process, where the kernel can."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from depthcut.errors import CheckpointError

_STEP_BYTES = 1 << 26
"""One call to the kernel, and one step of the progress bar."""
_BUFFER_BYTES = 1 << 20
_CANNOT = frozenset(
    {
        errno.EXDEV,
        errno.ENOSYS,
        errno.EINVAL,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.ENOTSOCK,
        errno.EBADF,
        errno.ETXTBSY,
    }
)
"""What a kernel or file system answers that knows no such copy; anything else is an error."""

Copy = Callable[[int, int, int, int], int]
"""(source, target, how many bytes, from where in the source) -> bytes copied, 0 at the end."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop) of a file."""

    file: Path
    start: int
    stop: int


def merge_ranges(ranges: Iterable[ByteRange]) -> Iterator[ByteRange]:
    """The same bytes in the same order, ranges that continue each other joined."""
    current: ByteRange | None = None
    for part in ranges:
        if current and (current.file, current.stop) == (part.file, part.start):
            current = ByteRange(part.file, current.start, part.stop)
        else:
            if current:
                yield current
            current = part
    if current:
        yield current


def write_ranges(
    target: Path, head: bytes, ranges: Iterable[ByteRange], *, done: Callable[[int], None]
) -> None:
    """Write a new file: `head`, then the ranges one after the other, synced to the disk.

    Args:
        target: The file to be; it must not exist.
        head: Its first bytes.
        ranges: What follows.
        done: Told of every step, in bytes.

    Raises:
        CheckpointError: A source cannot be read, or ends before its range does.
        OSError: The target cannot be written; ENOSPC where the disk is full.
    """
    handles: dict[Path, int] = {}
    output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _write_all(output, head)
        for part in merge_ranges(ranges):
            if part.file not in handles:
                handles[part.file] = _open(part.file)
            _copy_range(handles[part.file], output, part, done)
        os.fsync(output)
    finally:
        for handle in (output, *handles.values()):
            os.close(handle)


def copy_file(source: Path, target: Path) -> None:
    """A new file with the bytes of `source`, not its rights.

    Raises:
        CheckpointError: `source` cannot be read.
        OSError: The target cannot be written.
    """
    try:
        size_bytes = source.stat().st_size
    except OSError as error:
        raise CheckpointError(f"cannot read {source}: {error.strerror}") from error
    write_ranges(target, b"", [ByteRange(source, 0, size_bytes)], done=lambda _: None)


def _copy_range(source: int, target: int, part: ByteRange, done: Callable[[int], None]) -> None:
    position = part.start
    ways = _ways()
    while position < part.stop:
        wanted = min(part.stop - position, _STEP_BYTES)
        try:
            copied = ways[0](source, target, wanted, position)
        except OSError as error:
            if error.errno not in _CANNOT or len(ways) == 1:
                raise
            copied = 0
        if copied:
            position += copied
            done(copied)
        elif len(ways) > 1:
            ways = ways[1:]
        else:
            raise CheckpointError(
                f"{part.file} ended at byte {position:,}, {part.stop:,} were expected: it was "
                "changed meanwhile; run it again"
            )


def _ways() -> list[Copy]:
    """From the fastest to the one that always works."""
    ways: list[Copy] = [_through_memory]
    if hasattr(os, "sendfile"):
        ways.insert(0, _by_sendfile)
    if hasattr(os, "copy_file_range"):
        ways.insert(0, _by_copy_file_range)
    return ways


def _by_copy_file_range(source: int, target: int, count: int, start: int) -> int:
    return os.copy_file_range(source, target, count, offset_src=start)


def _by_sendfile(source: int, target: int, count: int, start: int) -> int:
    return os.sendfile(target, source, start, count)


def _through_memory(source: int, target: int, count: int, start: int) -> int:
    content = os.pread(source, min(count, _BUFFER_BYTES), start)
    _write_all(target, content)
    return len(content)


def _write_all(target: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(target, view) :]


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
