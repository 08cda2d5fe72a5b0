"""What a search has measured, on disk line by line: a killed search reads it and goes on.

A search is deterministic, so nothing else is kept: it begins anew, and finds here what it asks
for until it reaches the point where it was stopped.
"""

import contextlib
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from depthcut import journals
from depthcut.model.ranks import ALONE, Ranks


class Entry(NamedTuple):
    """One stack on one batch."""

    removed: tuple[int, ...]
    batch: int
    loss: tuple[float, ...]
    """By sequence, like the others."""
    divergence: tuple[float, ...]
    last_divergence: tuple[float, ...]
    layers: int
    """Passes of a sequence through a layer, of the search so far."""
    heads: int
    seconds: float
    """Of the search so far."""


class Gates(NamedTuple):
    """Gradients by the gates of all layers on one batch."""

    batch: int
    rows: tuple[tuple[tuple[float, ...], ...], ...]
    """By sequence and direction, for each layer."""
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
            self._take(line)

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
