"""What a checkpoint holds and what a cut makes of it, by plain Python that shares no code with
depthcut: everything is read into memory, and names are taken apart by hand."""

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path

Tensor = tuple[str, tuple[int, ...], bytes]
"""dtype, shape, bytes."""


def tensors_in(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    return {
        name: (
            entry["dtype"],
            tuple(entry["shape"]),
            content[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
    }


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint folder, in the files that transformers would read."""
    config = json.loads((folder / "config.json").read_bytes())
    named = config.get("transformers_weights")
    single, index = "model.safetensors", "model.safetensors.index.json"
    file = named if isinstance(named, str) else single
    if not (folder / file).exists():
        file = index
    if not file.endswith(".index.json"):
        return tensors_in(folder / file)
    weight_map = json.loads((folder / file).read_bytes())["weight_map"]
    found: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        held = tensors_in(folder / name)
        assert {tensor for tensor in weight_map if weight_map[tensor] == name} == set(held)
        found |= held
    return found


def cut(
    tensors: Mapping[str, Tensor],
    stacks: Sequence[str],
    kept: Sequence[int],
    layers: int,
    *,
    sliced: Mapping[str, int] | None = None,
    first_only: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """What is left with the layers `kept`, under its new names.

    Args:
        tensors: Of the whole model.
        stacks: Where the layers lie; the first part of the path may be missing.
        kept: The old layer of each new one.
        layers: How many there were.
        sliced: Axis by the end of a name: of tensors that hold a part for each layer.
        first_only: How the rest of a name begins that stays in the first layer.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        path, layer, rest = taken_apart(name, stacks)
        if layer is None:
            axis = next((a for end, a in (sliced or {}).items() if name.endswith(end)), None)
            result[name] = tensor if axis is None else _parts(tensor, axis, kept, layers)
        elif layer == 0 and first_only and rest.startswith(first_only):
            result[name] = tensor
        else:
            for new, old in enumerate(kept):
                if old == layer:
                    result[f"{path}.{new}.{rest}"] = tensor
    return result


def taken_apart(name: str, stacks: Sequence[str]) -> tuple[str, int | None, str]:
    """The path of a list, the index in it and the rest; no index: no layer of these stacks."""
    for stack in stacks:
        for path in (stack, stack.partition(".")[2]):
            if path and name.startswith(f"{path}."):
                index, _, rest = name.removeprefix(f"{path}.").partition(".")
                digits = index.isascii() and index.isdecimal() and len(index) < 9
                if digits and rest and str(int(index)) == index:
                    return path, int(index), rest
    return name, None, ""


def _parts(tensor: Tensor, axis: int, kept: Sequence[int], layers: int) -> Tensor:
    dtype, shape, content = tensor
    axis %= len(shape)
    rows = prod(shape[:axis])
    row = len(content) // rows if rows else 0
    part = row // layers
    pieces = [
        content[start + old * part : start + (old + 1) * part]
        for start in range(0, len(content), row or 1)
        for old in kept
    ]
    new = shape[axis] // layers * len(kept)
    return dtype, (*shape[:axis], new, *shape[axis + 1 :]), b"".join(pieces)


_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class _Gguf:
    """A cursor over a GGUF file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.content, self.position)
        self.position += struct.calcsize(f"<{form}")
        return int(value) if form not in "fd?" else value

    def text(self) -> bytes:
        size = self.number("Q")
        self.position += size
        assert self.position <= len(self.content)
        return self.content[self.position - size : self.position]

    def value(self, kind: int) -> object:
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, length = self.number("I"), self.number("Q")
            return inner, [self.value(inner) for _ in range(length)]
        start = self.position
        self.number(_FORMS[kind])
        return self.content[start : self.position]


def gguf_in(file: Path) -> tuple[dict[bytes, tuple[int, object]], dict[str, Tensor]]:
    """Metadata (type and value by key) and tensors (type, shape, bytes up to the next tensor)."""
    cursor = _Gguf(file.read_bytes())
    cursor.position = 8
    count, entries = cursor.number("Q"), cursor.number("Q")
    metadata: dict[bytes, tuple[int, object]] = {}
    for _ in range(entries):
        key, kind = cursor.text(), cursor.number("I")
        metadata[key] = kind, cursor.value(kind)
    infos = []
    for _ in range(count):
        name = cursor.text().decode()
        shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))
        infos.append((name, shape, cursor.number("I"), cursor.number("Q")))
    kind, given = metadata.get(b"general.alignment", (4, struct.pack("<I", 32)))
    assert isinstance(given, bytes)
    (alignment,) = struct.unpack(f"<{_FORMS[kind]}", given)
    start = cursor.position + -cursor.position % alignment
    tensors = {}
    for name, shape, kind, offset in infos:
        size = prod(shape) * 4 if kind == 0 else 0  # other types: names and shapes only
        content = cursor.content[start + offset : start + offset + size]
        tensors[name] = (str(kind), shape, content)
    return metadata, tensors
