"""The header of a safetensors file, read with suspicion and written so that every reader takes it.

A file is 8 bytes of length (little endian), so many bytes of JSON, then the tensors' bytes.
It MUST: have a JSON object as header, of UTF-8 without duplicate keys; give each tensor a
known dtype, a shape and offsets whose distance is what dtype and shape need; cover all the
bytes after the header, without gap or overlap. It MAY: pad the header with spaces, carry
`__metadata__` of strings, and name the tensors in any order.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from depthcut.errors import CheckpointError, short

DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element of every dtype of the format."""

LONGEST_HEADER_BYTES = 100_000_000
"""Readers of the format refuse longer headers."""

_LARGEST_DIMENSION = 2**63 - 1


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    dtype: str
    """As the format writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    """First byte, counted from the start of the file."""
    stop: int
    """First byte after it."""

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def elements(self) -> int:
        return self.size_bytes * 8 // DTYPE_BITS[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """What one safetensors file holds."""

    file: Path
    tensors: tuple[TensorEntry, ...]
    """In the order of their bytes."""
    metadata: dict[str, str]
    size_bytes: int
    """Of the whole file."""
    modified_ns: int
    """When it was last written, as the file system tells."""


def read_header(file: Path) -> Header:
    """The header of a safetensors file, checked against the file's size.

    Raises:
        CheckpointError: The file is missing, truncated, or its header breaks a rule of the format.
    """
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            size_bytes = status.st_size
            start = stream.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size_bytes - 8, LONGEST_HEADER_BYTES):
                raise _broken(
                    file,
                    f"it has {size_bytes:,} bytes, too few for the header of {length:,} bytes "
                    "that it announces"
                    if length <= LONGEST_HEADER_BYTES
                    else f"it announces a header of {length:,} bytes, more than the format allows",
                )
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    fields = _parse(file, raw)
    metadata = _metadata(file, fields.pop("__metadata__", None))
    tensors = sorted(
        (_entry(file, name, value, data_start=8 + length) for name, value in fields.items()),
        key=lambda entry: (entry.start, entry.stop),
    )
    _check_cover(file, tensors, data_start=8 + length, size_bytes=size_bytes)
    return Header(file, tuple(tensors), metadata, size_bytes, status.st_mtime_ns)


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]],
    metadata: Mapping[str, str],
    *,
    multiple: int = 8,
    remainder: int = 0,
) -> bytes:
    """The first bytes of a file that holds these tensors (name, dtype, shape, bytes) in order.

    Padded with spaces so that the tensors start at a multiple of 8 bytes, or leave another
    remainder of another multiple.
    """
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, dtype, shape, size_bytes in tensors:
        fields[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": (position, position + size_bytes),
        }
        position += size_bytes
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    body += b" " * ((remainder - 8 - len(body)) % multiple)
    return len(body).to_bytes(8, "little") + body


def _broken(file: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged: {what}; download or save it again")


def _parse(file: Path, raw: bytes) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise _broken(file, f"its header names {twice!r} twice")
        return found

    if not raw.startswith(b"{"):
        raise _broken(file, "its header is not a JSON object")
    try:
        fields = json.loads(raw.decode(), object_pairs_hook=unique)
        "".join(fields).encode()  # a lone surrogate is a name that no file can have
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _broken(file, f"its header is not JSON in UTF-8 ({error})") from error
    return dict(fields)


def _metadata(file: Path, value: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _broken(file, "its __metadata__ is not an object of strings")
    try:
        "".join([*value, *value.values()]).encode()
    except UnicodeEncodeError as error:
        raise _broken(file, "its __metadata__ is not text in UTF-8") from error
    return dict(value)


def _entry(file: Path, name: str, value: object, *, data_start: int) -> TensorEntry:
    def broken(what: str) -> CheckpointError:
        return _broken(file, f"tensor {name!r}: {what}")

    if not isinstance(value, dict):
        raise broken("its entry is not an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise broken(f"dtype {dtype!r} is none of {', '.join(DTYPE_BITS)}")
    if not _whole_numbers(shape):
        raise broken(f"{dtype}, shape {short(shape)} is not a list of whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise broken(f"data_offsets {short(offsets)} are not a start and an end")
    needed, given = _size_bytes(dtype, shape), offsets[1] - offsets[0]
    if needed != given:
        wanted = "no whole number of bytes" if needed is None else f"{needed:,} bytes"
        raise broken(f"{dtype} of shape {short(shape)} needs {wanted}, its offsets give {given:,}")
    return TensorEntry(
        name, dtype, tuple(shape), file, data_start + offsets[0], data_start + offsets[1]
    )


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number <= _LARGEST_DIMENSION for number in value
    )


def _size_bytes(dtype: str, shape: list[int]) -> int | None:
    bits = 0 if 0 in shape else DTYPE_BITS[dtype]
    for dimension in shape:
        bits *= dimension
        if bits > 8 * _LARGEST_DIMENSION:
            return None
    return bits // 8 if bits % 8 == 0 else None


def _check_cover(
    file: Path, tensors: list[TensorEntry], *, data_start: int, size_bytes: int
) -> None:
    position = data_start
    for entry in tensors:
        if entry.start != position:
            kind = "overlaps the one before it" if entry.start < position else "leaves a gap"
            raise _broken(
                file,
                f"tensor {entry.name!r} ({entry.dtype}, shape {short(list(entry.shape))}) {kind}: "
                f"byte {position - data_start:,} was expected, {entry.start - data_start:,} found",
            )
        position = entry.stop
    if position != size_bytes:
        found = size_bytes - data_start
        raise _broken(
            file, f"its tensors need {position - data_start:,} bytes, the file has {found:,}"
        )
