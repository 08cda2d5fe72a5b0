"""Where the bytes of a tensor lie that go into the new checkpoint: all of them, or some layers'."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from depthcut.architectures.fields import Cut
from depthcut.architectures.table import SlicedTensor
from depthcut.checkpoint.copying import ByteRange
from depthcut.checkpoint.headers import DTYPE_BITS, TensorEntry
from depthcut.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor of the new checkpoint."""

    name: str
    entry: TensorEntry
    """Whose bytes it takes."""
    sliced: SlicedTensor | None = None
    """None: all bytes."""
    cut: Cut | None = None
    zero: bool = False
    """Zeros instead of its bytes."""

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.entry.shape
        if self.sliced is None or self.cut is None:
            return shape
        axis = self.sliced.axis % len(shape)
        kept = shape[axis] // self.cut.layers * len(self.cut.kept)
        return (*shape[:axis], kept, *shape[axis + 1 :])

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * DTYPE_BITS[self.entry.dtype] // 8

    def ranges(self) -> Iterator[ByteRange]:
        """In the order of the new tensor's bytes."""
        entry = self.entry
        if self.zero:
            yield ByteRange(None, 0, self.size_bytes)
            return
        if self.sliced is None or self.cut is None:
            yield ByteRange(entry.file, entry.start, entry.stop)
            return
        axis = self.sliced.axis % len(entry.shape)
        rows = math.prod(entry.shape[:axis])
        row_bytes = entry.size_bytes // rows if rows else 0
        part_bytes = row_bytes // self.cut.layers
        runs = list(_runs(self.cut.kept))
        for row in range(entry.start, entry.stop, row_bytes or 1):
            for start, stop in runs:
                yield ByteRange(entry.file, row + start * part_bytes, row + stop * part_bytes)


def sliced_piece(entry: TensorEntry, sliced: SlicedTensor, cut: Cut) -> Piece:
    """The kept layers' parts of a tensor that holds one for each layer.

    Raises:
        CheckpointError: Its size is no multiple of the number of layers, or of a byte.
    """
    size = entry.shape[sliced.axis] if entry.shape else 0
    part = size // cut.layers * math.prod(entry.shape[sliced.axis % len(entry.shape) + 1 :] or (1,))
    if size % cut.layers or part * DTYPE_BITS[entry.dtype] % 8:
        raise CheckpointError(
            f"{entry.file}: tensor {entry.name!r} ({entry.dtype}, shape {list(entry.shape)}) must "
            f"hold equal parts for {cut.layers} layers along axis {sliced.axis}; get config and "
            "weights that belong together"
        )
    return Piece(entry.name, entry, sliced, cut)


def _runs(kept: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for _, run in groupby(enumerate(kept), lambda pair: pair[1] - pair[0]):
        layers = [old for _, old in run]
        yield layers[0], layers[-1] + 1
