"""Byte ranges from file to file through one small buffer, written back while the copy goes on.

Read and write with a buffer of a megabyte is faster here than copy_file_range or sendfile: a
range moves to another offset within its page, so that the kernel cannot share or splice pages
and copies them one by one, while large writes get large pages. Where bytes shall be shared, the
header is padded until whole blocks of the file system line up, and those are cloned.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from depthcut.errors import CheckpointError

_BUFFER_BYTES = 1 << 20
_WRITE_BACK_BYTES = 1 << 23
"""After so many bytes the kernel is asked to begin writing them to the disk."""
BLOCK_BYTES = 4096
"""What file systems that share bytes between files share at least."""
_CLONE_RANGE = 0x4020940D
"""Linux: FICLONERANGE, see ioctl_ficlonerange(2)."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, stop) of a file, or so many zeros."""

    file: Path | None
    """None: zeros."""
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
    target: Path,
    head: bytes,
    ranges: Iterable[ByteRange],
    *,
    done: Callable[[int], None],
    share: bool = False,
) -> None:
    """Write a new file: `head`, then the ranges one after the other.

    The kernel is on its way to write it to the disk, but it is not synced: see `new_folder`.

    Args:
        target: The file to be; it must not exist.
        head: Its first bytes.
        ranges: What follows.
        done: Told of every step, in bytes.
        share: Clone whole blocks where the file system can (btrfs, xfs, bcachefs, ZFS): they take
            no space until one of the files is changed. What does not line up is copied.

    Raises:
        CheckpointError: A source cannot be read, or ends before its range does.
        OSError: The target cannot be written; ENOSPC where the disk is full.
    """
    handles: dict[Path, int] = {}
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    output = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        _write_all(output, memoryview(head))
        written, begun = len(head), 0
        for part in merge_ranges(ranges):
            if part.file is not None and part.file not in handles:
                handles[part.file] = _open(part.file)
            source = None if part.file is None else handles[part.file]
            if share and source is not None:
                part, cloned = _clone(source, part, output, written, done)  # noqa: PLW2901
                written, begun = written + cloned, written + cloned
            for content in _read(source, part, buffer):
                _write_all(output, content)
                written += len(content)
                if written - begun >= _WRITE_BACK_BYTES:
                    _begin_write_back(output, begun, written)
                    begun = written
                done(len(content))
    finally:
        for handle in (output, *handles.values()):
            os.close(handle)


def link_file(source: Path, target: Path) -> None:
    """A new file with the bytes of `source` that takes no space: a clone, else a hard link, else,
    where the file system has neither, a copy.

    Raises:
        CheckpointError: `source` cannot be read.
        OSError: The target cannot be written.
    """
    real = source.resolve()
    size_bytes = real.stat().st_size
    with contextlib.suppress(OSError):
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            origin = _open(real)
            try:
                if _clone_range(origin, 0, 0, handle, 0):  # length 0: up to the end
                    return
            finally:
                os.close(origin)
        finally:
            os.close(handle)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(real)
    except OSError:
        write_ranges(target, b"", [ByteRange(real, 0, size_bytes)], done=lambda _: None)


def copy_file(source: Path, target: Path) -> None:
    """A new file with the bytes of `source`, not its rights.

    Raises:
        CheckpointError: `source` cannot be read.
        OSError: The target cannot be written.
    """
    try:
        size_bytes = source.stat().st_size
    except OSError as error:
        raise _unreadable(source, error) from error
    write_ranges(target, b"", [ByteRange(source, 0, size_bytes)], done=lambda _: None)


def _clone(
    source: int, part: ByteRange, target: int, at: int, done: Callable[[int], None]
) -> tuple[ByteRange, int]:
    """Clone the whole blocks at the start of a range; what is left of it, and how much was done.

    A range that begins within a block of both files has its first bytes copied.
    """
    if (part.start - at) % BLOCK_BYTES:
        return part, 0
    first = -part.start % BLOCK_BYTES
    whole = (part.stop - part.start - first) // BLOCK_BYTES * BLOCK_BYTES
    if whole <= 0:
        return part, 0
    buffer = memoryview(bytearray(first))
    for content in _read(source, ByteRange(part.file, part.start, part.start + first), buffer):
        _write_all(target, content)
    if not _clone_range(source, part.start + first, whole, target, at + first):
        os.lseek(target, at, os.SEEK_SET)
        return part, 0
    os.lseek(target, at + first + whole, os.SEEK_SET)
    done(first + whole)
    return ByteRange(part.file, part.start + first + whole, part.stop), first + whole


def _clone_range(source: int, start: int, length: int, target: int, at: int) -> bool:
    import fcntl

    try:
        fcntl.ioctl(target, _CLONE_RANGE, struct.pack("qQQQ", source, start, length, at))
    except OSError:
        return False
    return True


def _read(source: int | None, part: ByteRange, buffer: memoryview) -> Iterator[memoryview]:
    position = part.start
    if source is None or part.file is None:
        zeros = memoryview(bytes(min(len(buffer), part.stop - position)))
        while position < part.stop:
            yield zeros[: part.stop - position]
            position += len(zeros)
        return
    while position < part.stop:
        try:
            count = os.preadv(source, [buffer[: part.stop - position]], position)
        except OSError as error:
            raise _unreadable(part.file, error) from error
        if count == 0:
            raise CheckpointError(
                f"{part.file} ended at byte {position:,}, {part.stop:,} were expected: it was "
                "changed meanwhile; run it again"
            )
        position += count
        yield buffer[:count]


def _write_all(target: int, content: memoryview) -> None:
    while content:
        content = content[os.write(target, content) :]


def _begin_write_back(target: int, start: int, stop: int) -> None:
    """So that the sync at the end finds little left; pages not yet written stay in the cache."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(target, start, stop - start, os.POSIX_FADV_DONTNEED)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {file}: {error.strerror}")
