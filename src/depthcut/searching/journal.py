"""What a search has measured, on disk line by line: a killed search reads it and goes on.

A search is deterministic, so nothing else is kept: it begins anew, and finds here what it asks
for until it reaches the point where it was stopped.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from depthcut import journals
from depthcut.model.ranks import ALONE, Ranks


class Entry(NamedTuple):
    """One stack on one batch."""

    removed: tuple[int, ...]
    batch: int
    loss: tuple[float | None, ...]
    """By sequence, like the others. None is only on the disk, for what is no finite number (JSON
    has none); it is read as nan."""
    divergence: tuple[float | None, ...]
    last_divergence: tuple[float | None, ...]
    layers: int
    """Passes of a sequence through a layer, of the search so far."""
    heads: int
    seconds: float
    """Of the search so far."""


class Gates(NamedTuple):
    """Gradients by the gates of all layers on one batch."""

    batch: int
    rows: tuple[tuple[tuple[float | None, ...], ...], ...]
    """By sequence and direction, for each layer. None as of an `Entry`."""
    layers: int
    """As of an `Entry`."""
    heads: int
    seconds: float


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    entry: Entry | None = None
    gates: Gates | None = None


class Journal:
    """What was measured, in order; without a path in memory only. A context manager."""

    def __init__(self, path: Path | None, inputs: str, *, ranks: Ranks = ALONE) -> None:
        """Read what is there and go on behind it.

        Args:
            path: The file; None: none.
            inputs: Digest of what the search depends on.
            ranks: Of several processes the first one has the file; all know what is in it.

        Raises:
            OutputError: It is another search's, or cannot be written.
        """
        self.entries: list[Entry] = []
        self.gates: list[Gates] = []
        self.last: Entry | Gates | None = None
        """What was measured last."""
        self._lines: journals.Journal[_Line] | None = None
        self._open = contextlib.ExitStack()
        if path is not None and not ranks.rank:
            opened = journals.Journal(path, _Line, inputs=inputs)
            self._lines = self._open.enter_context(opened)
        for line in ranks.of_first(list(self._lines or ())):
            self._take(_read(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def batch_size(self) -> int | None:
        """Sequences that were read at once; None: nothing was read yet. What goes on behind the
        entries must read as many, or a batch would be another one."""
        return next((len(entry.loss) for entry in self.entries if entry.batch == 0), None)

    def add(self, measured: Entry | Gates) -> None:
        """On return it is on the disk."""
        line = _Line(entry=measured) if isinstance(measured, Entry) else _Line(gates=measured)
        self._take(line)
        if self._lines is not None:
            self._lines.append(line)

    def _take(self, line: _Line) -> None:
        if line.entry is not None:
            self.last = line.entry
            self.entries.append(line.entry)
        if line.gates is not None:
            self.last = line.gates
            self.gates.append(line.gates)


def _read(line: _Line) -> _Line:
    entry, gates = line.entry, line.gates
    if entry is not None:
        columns = (entry.loss, entry.divergence, entry.last_divergence)
        loss, divergence, last = map(_numbers, columns)
        entry = entry._replace(loss=loss, divergence=divergence, last_divergence=last)
    if gates is not None:
        rows = tuple(tuple(map(_numbers, each)) for each in gates.rows)
        gates = gates._replace(rows=rows)
    return _Line(entry=entry, gates=gates)


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else value for value in values)
