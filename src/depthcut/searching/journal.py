"""What a search has measured, on disk line by line: a killed search reads it and goes on.

A search is deterministic, so nothing else is kept: it begins anew, and finds here what it asks
for until it reaches the point where it was stopped.
"""

import json
import os
import re
from pathlib import Path
from typing import IO, Any, NamedTuple

from depthcut.errors import OutputError


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

    gates: int
    """The batch."""
    rows: tuple[tuple[tuple[float, ...], ...], ...]
    """By sequence and direction, for each layer."""
    layers: int
    """As of an `Entry`."""
    heads: int
    seconds: float


class Journal:
    """An append-only file; without a path it is kept in memory only."""

    def __init__(self, path: Path | None, inputs: str) -> None:
        """Read what is there and go on behind it.

        Args:
            path: The file; None: none.
            inputs: Digest of what the search depends on.

        Raises:
            OutputError: It is another search's, or cannot be written.
        """
        self.entries: list[Entry] = []
        self.gates: list[Gates] = []
        self.last: Entry | Gates | None = None
        """What was measured last."""
        self.path = path
        self._file: IO[bytes] | None = None
        if path is None:
            return
        try:
            good = self._read(path, inputs) if path.exists() else 0
            self._file = path.open("r+b" if path.exists() else "xb")
            self._file.truncate(good)
            self._file.seek(good)
            if not good:
                self._write({"inputs": inputs})
        except OutputError:  # an OSError itself
            raise
        except OSError as error:
            raise OutputError(
                f"cannot write {path}: {error.strerror}; choose another --out"
            ) from error

    @property
    def batch_size(self) -> int | None:
        """Sequences that were read at once; None: nothing was read yet. What goes on behind the
        entries must read as many, or a batch would be another one."""
        return next((len(entry.loss) for entry in self.entries if entry.batch == 0), None)

    def add(self, entry: Entry | Gates) -> None:
        self._take(entry)
        self._write(entry._asdict())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def delete(self) -> None:
        """Once its result is written elsewhere."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            # One write to the operating system: what a killed process wrote is there.
            content = json.dumps(line, separators=(",", ":")).encode() + b"\n"
            os.write(self._file.fileno(), content)

    def _read(self, path: Path, inputs: str) -> int:
        """Bytes of the whole lines; a last line cut short by a kill does not count."""
        content = path.read_bytes()
        good = content.rfind(b"\n") + 1
        first, *lines = content[:good].split(b"\n")
        if good and not re.search(rb'"inputs":"%s"' % inputs.encode(), first):
            raise OutputError(
                f"{path} is what another search left (other settings, model or text): remove it, "
                "or choose another --out"
            )
        for line in filter(None, lines):
            values = json.loads(line)
            kind = Gates if "gates" in values else Entry
            self._take(kind(**{name: _frozen(value) for name, value in values.items()}))
        return good

    def _take(self, entry: Entry | Gates) -> None:
        self.last = entry
        if isinstance(entry, Gates):
            self.gates.append(entry)
        else:
            self.entries.append(entry)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
