"""A file of JSON lines that outlives a kill: what was appended is there, a torn end is not."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, Self, TypeVar

import msgspec

from depthcut.errors import OutputError

_log = logging.getLogger(__name__)

T = TypeVar("T", bound=msgspec.Struct)


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line."""

    inputs: str


class Journal(Generic[T]):
    """Lines of one kind, appended one at a time and each synced to the disk.

    A context manager; inside it no other process can open the file, where the file system has
    locks. It stays until `delete`, unless nothing was appended at all.
    """

    def __init__(self, path: Path, kind: type[T], *, inputs: str) -> None:
        """Open the journal at `path`, or begin one.

        Args:
            path: Its folder is made.
            kind: What a line holds.
            inputs: Digest of all that the lines depend on, see `records.inputs_digest`.

        Raises:
            OutputError: It was begun with other inputs, is no journal, another process is at it,
                or the place cannot be written.
        """
        self.path, self._kind = path, kind
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; choose another --out"
            ) from error
        try:
            self._lock()
            self._end = self._whole_lines(inputs)
            os.ftruncate(self._handle, self._end)
            head = _Head(inputs)
            if not self._end:
                self._write(head)
            self._empty = len(_line(head))
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._end == self._empty:
            self.path.unlink(missing_ok=True)
        os.close(self._handle)

    def __iter__(self) -> Iterator[T]:
        """All lines from the first on, read from the disk."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield msgspec.json.decode(line, type=self._kind)

    def append(self, line: T) -> None:
        """One more line; on return it is on the disk.

        Raises:
            OutputError: It cannot be written. The lines before it are kept.
        """
        self._write(line)

    def delete(self) -> None:
        """Remove it, once what it was for stands elsewhere."""
        self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another depthcut is writing {self.path}: wait for it, or choose another --out"
            ) from error
        except OSError:
            _log.debug("%s is on a file system without locks: two could write it", self.path)

    def _whole_lines(self, inputs: str) -> int:
        """Bytes of the lines that are whole; behind them is what a kill cut short."""
        end = 0
        with self.path.open("rb") as file:
            for line in file:
                if not end:
                    self._compare(line, inputs)
                if line.endswith(b"\n"):
                    end += len(line)
        return end

    def _compare(self, line: bytes, inputs: str) -> None:
        if _line(_Head(inputs)).startswith(line):
            return
        try:
            msgspec.json.decode(line, type=_Head)
        except msgspec.DecodeError as error:
            raise OutputError(
                f"{self.path} is no journal of depthcut: choose another --out, or remove it"
            ) from error
        raise OutputError(
            f"{self.path} was begun with other settings, another model or text: repeat that "
            "command to go on, choose another --out, or remove it"
        )

    def _write(self, line: msgspec.Struct) -> None:
        content = _line(line)
        try:
            left = content
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self._end)
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}; make room and repeat the command, "
                "it goes on where it stopped"
            ) from error
        self._end += len(content)


def _line(content: msgspec.Struct) -> bytes:
    return msgspec.json.encode(content) + b"\n"
