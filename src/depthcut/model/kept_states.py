"""States kept for later: in memory up to a limit, then in a temporary file without a name."""

import mmap
import os
import tempfile
from collections.abc import Hashable, Iterable, Iterator
from typing import IO, NamedTuple, cast

import torch
from torch import Tensor
from typing_extensions import Buffer

from depthcut.errors import OutputError


class _Place(NamedTuple):
    offset: int
    shape: torch.Size
    dtype: torch.dtype


class KeptStates:
    """Tensors by key. Those in memory stay on their device; the file is gone with the process.

    The file is written and read, not mapped: what lies in it never counts as resident memory.
    """

    def __init__(self, memory_bytes: int, *, apart: bool = False) -> None:
        """Keep so many bytes in memory.

        Args:
            memory_bytes: At most.
            apart: Each in pages of its own, copied to the CPU. Among what is allocated and freed
                meanwhile they would leave holes, up to as large as they are.
        """
        self.left_bytes = memory_bytes
        """Of the limit; what no longer fits goes to the file."""
        self._apart = apart
        self._memory: dict[Hashable, Tensor] = {}
        self._places: dict[Hashable, _Place] = {}
        self._file: IO[bytes] | None = None
        self._end = 0
        self._free: dict[int, list[int]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._memory or key in self._places

    def put(self, key: Hashable, states: Tensor) -> None:
        """Keep a tensor as it is; it must not be changed afterwards. A key is put once.

        Raises:
            OutputError: There is no room for temporary files.
        """
        size = states.nbytes
        if size <= self.left_bytes:
            # A view would keep alive what it is a view of.
            whole = states.untyped_storage().nbytes() == size and not self._apart
            copied = _in_own_pages if self._apart else torch.clone
            self._memory[key] = states if whole else copied(states)
            self.left_bytes -= size
            return
        try:
            self._places[key] = self._written(states, size)
        except OSError as error:
            raise OutputError(
                f"cannot keep states in {tempfile.gettempdir()}: {error.strerror}; set TMPDIR to a "
                "larger place, or read fewer --tokens"
            ) from error

    def _written(self, states: Tensor, size: int) -> _Place:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="depthcut-states-")  # noqa: SIM115
        offsets = self._free.get(size)
        if offsets:
            offset = offsets.pop()
        else:
            offset, self._end = self._end, self._end + size
        content = _bytes_of(states.cpu().contiguous())
        written = 0
        while written < size:
            written += os.pwrite(self._file.fileno(), content[written:], offset + written)
        return _Place(offset, states.shape, states.dtype)

    def get(self, key: Hashable, device: torch.device) -> Tensor:
        """The tensor on a device.

        Raises:
            KeyError: It is not kept.
        """
        if key in self._memory:
            return self._memory[key].to(device)
        place = self._places[key]
        states = torch.empty(place.shape, dtype=place.dtype)
        content = _bytes_of(states)
        read = 0
        while read < len(content) and self._file is not None:
            read += os.preadv(self._file.fileno(), [content[read:]], place.offset + read)
        return states.to(device)

    def discard(self, keys: Iterable[Hashable]) -> None:
        """Forget some tensors; unknown keys are passed over."""
        for key in list(keys):
            if key in self._memory:
                self.left_bytes += self._memory.pop(key).nbytes
            elif key in self._places:
                place = self._places.pop(key)
                size = place.shape.numel() * place.dtype.itemsize
                self._free.setdefault(size, []).append(place.offset)

    def __iter__(self) -> Iterator[Hashable]:
        yield from (*self._memory, *self._places)


def _in_own_pages(states: Tensor) -> Tensor:
    if not states.numel():
        return states.cpu()
    pages = mmap.mmap(-1, states.nbytes)
    return torch.frombuffer(pages, dtype=states.dtype).view(states.shape).copy_(states)


def _bytes_of(states: Tensor) -> memoryview:
    """Those of a contiguous tensor on the CPU, to be read or written."""
    return memoryview(cast(Buffer, states.flatten().view(torch.uint8).numpy()))
