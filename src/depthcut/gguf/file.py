"""GGUF files, whole or in parts: read as one, and written.

See `gguf_part` for the format and what is checked.
"""

import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from depthcut.checkpoint.folder import refuse_outside
from depthcut.errors import CheckpointError
from depthcut.gguf.part import (
    ARRAY,
    FORMATS,
    MAGIC,
    STRING,
    GgufPart,
    GgufTensor,
    MetadataEntry,
    Value,
    broken,
    check_unique,
    read_part,
)

_PART = re.compile(r"(.+-)(\d{5})(-of-(\d{5})\.gguf)")


@dataclass(frozen=True, slots=True)
class Gguf:
    """What a GGUF file holds, all its parts together."""

    file: Path
    """The first part."""
    files: tuple[Path, ...]
    version: int
    alignment: int
    metadata: dict[str, MetadataEntry]
    """In the file's order, without what says how it is split."""
    tensors: tuple[GgufTensor, ...]
    """In the file's order."""


def read_gguf(file: Path) -> Gguf:
    """The metadata and tensors of a GGUF file, and of the parts that follow it.

    Raises:
        CheckpointError: A part is missing, truncated, breaks a rule of the format, or is of a
            version or byte order that is not read here.
    """
    first = read_part(file)
    count = _split_number(first, "split.count")
    names = _part_names(first, count)
    parts = [first, *(read_part(file.with_name(name)) for name in names[1:])]
    for number, part in enumerate(parts):
        found = _split_number(part, "split.no"), _split_number(part, "split.count")
        extra = [key for key in part.metadata if not key.startswith("split.")] if number else []
        if count and (found != (number, count) or extra):
            what = f"it also has the key {extra[0]}" if extra else f"it is {found[0]} of {found[1]}"
            raise broken(part.file, f"part {number} (from 0) of {count} was expected, {what}")
    tensors = tuple(tensor for part in parts for tensor in part.tensors)
    check_unique(file, "tensor", [tensor.name for tensor in tensors])
    total = _split_number(first, "split.tensors.count")
    if count > 1 and total not in (0, len(tensors)):
        raise broken(file, f"{total:,} tensors are promised, its parts have {len(tensors):,}")
    metadata = {k: entry for k, entry in first.metadata.items() if not k.startswith("split.")}
    files = tuple(part.file for part in parts)
    return Gguf(file, files, first.version, first.alignment, metadata, tensors)


def raw_entry(entry: MetadataEntry) -> bytes:
    """A key and its value as they stand in the file.

    Raises:
        CheckpointError: The file cannot be read, or was changed meanwhile.
    """
    try:
        with entry.file.open("rb", buffering=0) as stream:
            raw = os.pread(stream.fileno(), entry.stop - entry.start, entry.start)
    except OSError as error:
        raise CheckpointError(f"cannot read {entry.file}: {error.strerror}") from error
    if len(raw) != entry.stop - entry.start:
        raise CheckpointError(f"{entry.file} was changed meanwhile; run it again")
    return raw


def encode_entry(entry: MetadataEntry, value: Value) -> bytes:
    """The same key with another value of the same type; an array may have another length."""
    head = _encode_text(entry.key)
    if not entry.is_array:
        return head + struct.pack("<I", entry.type) + _encode(entry.type, value)
    assert isinstance(value, tuple)
    items = b"".join(_encode(entry.type, item) for item in value)
    return head + struct.pack("<IIQ", ARRAY, entry.type, len(value)) + items


def encode_text_entry(key: str, text: str) -> bytes:
    """A key with a text."""
    return _encode_text(key) + struct.pack("<I", STRING) + _encode_text(text)


def encode_head(
    version: int,
    entries: Iterable[bytes],
    tensors: Iterable[tuple[str, tuple[int, ...], int, int]],
    alignment: int,
) -> bytes:
    """The bytes of a file up to its tensors (name, shape, type, bytes), which follow in order,
    each padded to the alignment as this head is."""
    listed, infos = list(entries), []
    position = 0
    for name, shape, kind, size_bytes in tensors:
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos.append(_encode_text(name) + dimensions + struct.pack("<IQ", kind, position))
        position += size_bytes + -size_bytes % alignment
    head = MAGIC + struct.pack("<IQQ", version, len(infos), len(listed))
    head = b"".join((head, *listed, *infos))
    return head + bytes(-len(head) % alignment)


def _split_number(part: GgufPart, key: str) -> int:
    entry = part.metadata.get(key)
    if entry is None:
        return 0
    if type(entry.value) is not int or entry.value < 0:
        raise broken(part.file, f"{key} must be a whole number, found {entry.value!r}")
    return entry.value


def _part_names(first: GgufPart, count: int) -> list[str]:
    """Of all parts, the first one's with them."""
    name = first.file.name
    if count <= 1:
        return [name]
    match = _PART.fullmatch(name)
    if match is None or int(match[4]) != count:
        raise CheckpointError(
            f"{first.file} is one of {count} parts, so that its name must end in "
            f"-00001-of-{count:05d}.gguf: give the parts the names that they had"
        )
    names = [f"{match[1]}{number:05d}{match[3]}" for number in range(1, count + 1)]
    if name != names[0]:
        raise CheckpointError(
            f"{first.file} is not the first of its {count} parts: give {names[0]}"
        )
    for other in map(first.file.with_name, names):
        if not other.is_file():
            raise CheckpointError(f"{other} is missing: all {count} parts are needed")
        if other != first.file:  # that one was named by the user
            refuse_outside(other, other.parent)
    return names


def _encode_text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _encode(kind: int, value: object) -> bytes:
    return struct.pack(f"<{FORMATS[kind]}", value)
