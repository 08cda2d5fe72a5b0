"""The GGUF format, read with suspicion and written so that every reader takes it.

A file is a magic, a version and two counts; the metadata, each a key, a type and a value; the
tensors' names, shapes, types and offsets; padding; the tensors' bytes, each padded to the
alignment. Numbers are little endian. It MUST: have counts and lengths that its size allows, keys
and names of UTF-8 and no two alike, an alignment that is a power of two, and tensors that lie
within it, aligned and without overlap. It MAY: be one of several parts, leave gaps, hold values
of any length, and tensors of types that are unknown here: their size is the room that they have.

Long values (a vocabulary) are walked over, never decoded: they are carried as bytes.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from depthcut.errors import CheckpointError
from depthcut.gguf.tensor_types import TENSOR_TYPES

Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...]

LONGEST_METADATA_BYTES = 1 << 28
"""A vocabulary takes a few megabytes; more than this is no metadata."""
MAGIC = b"GGUF"
STRING, ARRAY = 8, 9
FORMATS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Of the metadata's types that have a fixed size, as `struct` writes them."""

_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 20
_LONGEST_NAME = 1 << 16
_LONGEST_DECODED = 4096
"""Bytes of a string, entries of an array: longer ones say nothing of layers."""
_MOST_DIMENSIONS = 4
_MOST_NESTED = 4
_WINDOW_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """One key with its value."""

    key: str
    type: int
    """Of the value; of each entry for an array."""
    is_array: bool
    value: Value | None
    """None: too long to be decoded, or an array of strings or arrays."""
    length: int
    """Entries of an array; else 1."""
    file: Path
    start: int
    """First byte of the key's own length, counted from the start of the file."""
    stop: int
    """First byte after the value."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies."""

    name: str
    type: int
    shape: tuple[int, ...]
    """As the format writes it: the dimension of neighbouring elements first."""
    file: Path
    start: int
    size_bytes: int
    """Without padding; of a type that is unknown here, with it."""

    @property
    def stop(self) -> int:
        return self.start + self.size_bytes

    @property
    def elements(self) -> int:
        return _product(self.shape)

    @property
    def type_name(self) -> str:
        """As quantisers name it: Q4_K, F16, ..."""
        known = TENSOR_TYPES.get(self.type)
        return known.name if known else f"type {self.type}"


@dataclass(frozen=True, slots=True)
class GgufPart:
    """What one file holds."""

    file: Path
    version: int
    alignment: int
    metadata: dict[str, MetadataEntry]
    tensors: tuple[GgufTensor, ...]


def read_part(file: Path) -> GgufPart:
    """What one file holds, whether it is all of a model or not.

    Raises:
        CheckpointError: It cannot be read, breaks a rule of the format, or is of a version or byte
            order that is not read here.
    """
    if file.exists() and not file.is_file():  # a pipe would never answer
        raise CheckpointError(f"{file} is no regular file: give the GGUF file itself")
    try:
        with file.open("rb", buffering=0) as stream:
            size_bytes = os.fstat(stream.fileno()).st_size
            return _parse(_Reader(file, stream.fileno(), size_bytes))
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error


def _parse(reader: "_Reader") -> GgufPart:
    version = _check_start(reader)
    tensor_count, entry_count = reader.number("Q"), reader.number("Q")
    reader.expect(24 * tensor_count + 13 * entry_count, f"{tensor_count:,} tensors")
    entries = [_read_entry(reader) for _ in range(entry_count)]
    check_unique(reader.file, "key", [entry.key for entry in entries])
    metadata = {entry.key: entry for entry in entries}
    alignment = _alignment(reader.file, metadata.get("general.alignment"))
    infos = [_read_info(reader) for _ in range(tensor_count)]
    data_start = reader.position + -reader.position % alignment
    tensors = _place(reader, infos, data_start, alignment)
    return GgufPart(reader.file, version, alignment, metadata, tensors)


def _check_start(reader: "_Reader") -> int:
    file = reader.file
    if reader.size_bytes < 24 or reader.take(4) != MAGIC:
        raise CheckpointError(f"{file} is no GGUF file: it must begin with GGUF; check the name")
    version = int(reader.number("I"))
    if version & 0xFFFF == 0:
        raise CheckpointError(
            f"{file} is big endian, which is not supported: convert the model again on, or for, a "
            "little-endian machine"
        )
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{file} has version {version} of GGUF, 2 and 3 are supported: "
            + ("convert the model again" if version < 2 else "update depthcut")
        )
    return version


class _Reader:
    """Walks over the head of a file, never beyond its end, a window of it in memory."""

    def __init__(self, file: Path, handle: int, size_bytes: int) -> None:
        self.file = file
        self.size_bytes = size_bytes
        self.position = 0
        self._handle = handle
        self._window = b""
        self._window_start = 0

    def expect(self, count: int, what: str) -> None:
        """Raise CheckpointError unless there are `count` more bytes, and they may be metadata."""
        if count > self.size_bytes - self.position:
            raise broken(
                self.file,
                f"{what} need at least {count:,} bytes from byte {self.position:,} on, it has "
                f"{self.size_bytes:,}",
            )
        if self.position + count > LONGEST_METADATA_BYTES:
            raise broken(
                self.file, f"its metadata takes more than {LONGEST_METADATA_BYTES:,} bytes"
            )

    def take(self, count: int, what: str = "its metadata") -> bytes:
        self.expect(count, what)
        start = self.position - self._window_start
        if start < 0 or start + count > len(self._window):
            length = max(count, _WINDOW_BYTES)
            self._window = os.pread(self._handle, length, self.position)
            self._window_start, start = self.position, 0
            if len(self._window) < count:
                raise CheckpointError(f"{self.file} was changed meanwhile; run it again")
        self.position += count
        return self._window[start : start + count]

    def number(self, form: str) -> int:
        (value,) = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))
        return int(value)

    def text(self, what: str) -> str:
        length = self.number("Q")
        if length > _LONGEST_NAME:
            raise broken(self.file, f"{what} has {length:,} bytes, at most {_LONGEST_NAME:,} may")
        return _decoded(self.file, self.take(length, what), what)

    def skip(self, count: int, what: str) -> None:
        self.expect(count, what)
        self.position += count

    def skip_texts(self, count: int, what: str) -> None:
        """Over strings, as many as there are."""
        self.expect(8 * count, what)
        length_at = struct.Struct("<Q").unpack_from
        while count:
            self.expect(8, what)
            window = os.pread(self._handle, _WINDOW_BYTES, self.position)
            offset = 0
            while count and offset + 8 <= len(window):
                offset += 8 + length_at(window, offset)[0]
                count -= 1
            if offset == 0:
                raise CheckpointError(f"{self.file} was changed meanwhile; run it again")
            self.skip(offset, what)


def _read_entry(reader: _Reader) -> MetadataEntry:
    start = reader.position
    key = reader.text("a key")
    what = f"the value of {key[:80]!r}"
    kind, length = reader.number("I"), 1
    value: Value | None = None
    is_array = kind == ARRAY
    if is_array:
        kind, length, value = _read_array(reader, what)
    elif kind == STRING:
        length_bytes = reader.number("Q")
        if length_bytes <= _LONGEST_DECODED:
            value = _decoded(reader.file, reader.take(length_bytes, what), what)
        else:
            reader.skip(length_bytes, what)
        length = 1
    else:
        form = _form(reader.file, kind, what)
        (value,) = struct.unpack(f"<{form}", reader.take(struct.calcsize(f"<{form}"), what))
    return MetadataEntry(key, kind, is_array, value, length, reader.file, start, reader.position)


def _read_array(
    reader: _Reader, what: str, depth: int = 1
) -> tuple[int, int, tuple[Scalar, ...] | None]:
    """The type of the entries, how many there are, and the entries where they are of use."""
    kind, length = reader.number("I"), reader.number("Q")
    if kind == STRING:
        reader.skip_texts(length, what)
    elif kind == ARRAY:
        if depth == _MOST_NESTED:
            raise broken(reader.file, f"{what} has arrays in arrays, more than {depth} deep")
        reader.expect(12 * length, what)
        for _ in range(length):
            _read_array(reader, what, depth + 1)
    else:
        form = _form(reader.file, kind, what)
        size_bytes = length * struct.calcsize(f"<{form}")
        if length <= _LONGEST_DECODED and depth == 1:
            return kind, length, struct.unpack(f"<{length}{form}", reader.take(size_bytes, what))
        reader.skip(size_bytes, what)
    return kind, length, None


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


def _read_info(reader: _Reader) -> _Info:
    name = reader.text("the name of a tensor")
    dimensions = reader.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise broken(
            reader.file, f"tensor {name[:80]!r} has {dimensions:,} dimensions, at most 4 are known"
        )
    shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions))
    return _Info(name, shape, reader.number("I"), reader.number("Q"))


def _place(
    reader: _Reader, infos: list[_Info], data_start: int, alignment: int
) -> tuple[GgufTensor, ...]:
    """The tensors with their place in the file, in the order of `infos`."""
    file = reader.file
    check_unique(file, "tensor", [info.name for info in infos])
    for info in infos:
        if info.offset % alignment:
            raise broken(file, f"tensor {info.name[:80]!r} is not aligned to {alignment} bytes")
    room = max(reader.size_bytes - data_start, 0)
    placed: dict[str, GgufTensor] = {}
    ordered = sorted(infos, key=lambda info: (info.offset, _product(info.shape) > 0))
    for info, after in zip(ordered, [*(each.offset for each in ordered[1:]), room], strict=False):
        needed = _size_bytes(file, info)
        size_bytes = max(after - info.offset, 0) if needed is None else needed
        words = f"tensor {info.name[:80]!r} at byte {info.offset:,} of the tensors"
        if info.offset + size_bytes > room:
            raise broken(file, f"{words} needs {size_bytes:,} bytes, there are {room:,} in all")
        if info.offset + size_bytes > after:
            raise broken(file, f"{words} has {size_bytes:,} bytes and overlaps the next one")
        start = data_start + info.offset
        placed[info.name] = GgufTensor(info.name, info.type, info.shape, file, start, size_bytes)
    return tuple(placed[info.name] for info in infos)


def _size_bytes(file: Path, info: _Info) -> int | None:
    """None: the type is unknown here."""
    elements = _product(info.shape)
    if elements >= 1 << 62:
        raise broken(file, f"tensor {info.name[:80]!r} of shape {info.shape} is absurdly large")
    known = TENSOR_TYPES.get(info.type)
    if known is None:
        return None
    row = info.shape[0] if info.shape else 1
    if row % known.block_elements:
        raise broken(
            file,
            f"tensor {info.name[:80]!r} has rows of {row:,} elements, {known.name} needs multiples "
            f"of {known.block_elements}",
        )
    return elements // known.block_elements * known.block_bytes


def _alignment(file: Path, entry: MetadataEntry | None) -> int:
    value = _DEFAULT_ALIGNMENT if entry is None else entry.value
    if type(value) is int and 0 < value <= _LARGEST_ALIGNMENT and value & (value - 1) == 0:
        return value
    most = f"{_LARGEST_ALIGNMENT:,}"
    raise broken(file, f"its alignment must be a power of two up to {most}, found {value!r}")


def check_unique(file: Path, what: str, names: list[str]) -> None:
    """Raise CheckpointError if a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise broken(file, f"it has the {what} {name[:80]!r} twice")
        seen.add(name)


def _form(file: Path, kind: int, what: str) -> str:
    form = FORMATS.get(kind)
    if form is None:
        raise broken(file, f"{what} has the unknown type {kind}")
    return form


def _decoded(file: Path, raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise broken(file, f"{what} is not UTF-8 ({raw[:40]!r})") from error


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for dimension in shape:
        result *= dimension
    return result


def broken(file: Path, what: str) -> CheckpointError:
    """That a file breaks a rule of the format."""
    return CheckpointError(f"{file} is damaged: {what}; download or convert it again")
