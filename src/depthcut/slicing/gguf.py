"""A GGUF file cut to some of its layers: bytes copied, names and metadata cut."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from depthcut.architectures.configs import nearest_removal
from depthcut.architectures.fields import Cut
from depthcut.checkpoint.copying import ByteRange, write_ranges
from depthcut.errors import ArchitectureError, CheckpointError, PlanError
from depthcut.files import new_file, refuse_existing
from depthcut.gguf.file import (
    Gguf,
    encode_entry,
    encode_head,
    encode_text_entry,
    raw_entry,
    read_gguf,
)
from depthcut.gguf.layers import cut_metadata
from depthcut.gguf.model import LAYER, GgufModel, gguf_model, speaking_of
from depthcut.gguf.part import GgufTensor, Value
from depthcut.progress import progress

_BY_NAME = "general.tensor_extra.name"
_PROGRESS_BYTES = 1 << 30
"""From this size on a copy may take seconds."""


def slice_gguf(
    file: Path, kept: Sequence[int], out: Path, *, added: Mapping[str, str] | None = None
) -> None:
    """Write the GGUF file that is left of `file` with the layers `kept`.

    Every tensor's bytes, the order of tensors and all metadata that does not speak of layers
    are the source's. A file in parts becomes one. Blocks behind the decoder's layers that
    predict further tokens are carried.

    Args:
        file: A GGUF file, or the first of its parts.
        kept: `kept[new]` is the old layer, counted from 0; any order, repeats allowed.
        out: The file to be; it appears whole or not at all.
        added: Metadata to be added or replaced, such as where the file came from.

    Raises:
        CheckpointError: The file is damaged, or was changed while it was read.
        ArchitectureError: Its architecture is unknown, or cannot say this cut.
        PlanError: `kept` is empty or out of range.
        OutputError: `out` exists, cannot be written, or the disk is full.
    """
    refuse_existing(out)
    gguf = read_gguf(file)
    before = _states(gguf)
    model = gguf_model(gguf)
    changes = cut_changes(model, tuple(kept))
    tensors = list(_kept_tensors(model, kept))
    entries = _entries(gguf, changes, added or {})
    infos = ((t.name, t.tensor.shape, t.tensor.type, t.tensor.size_bytes) for t in tensors)
    head = encode_head(gguf.version, entries, infos, gguf.alignment)
    size_bytes = len(head) + sum(t.tensor.size_bytes + gguf.alignment for t in tensors)
    with new_file(out, needed_bytes=size_bytes) as working:
        ranges = _ranges(tensors, gguf.alignment)
        _copy(working, head, ranges, size_bytes)
        _check_result(working, tensors, len(kept))
        if _states(gguf) != before:
            raise CheckpointError(f"{file} was changed while it was read; run it again")


@dataclass(frozen=True, slots=True)
class _Kept:
    name: str
    tensor: GgufTensor


def cut_changes(model: GgufModel, kept: tuple[int, ...]) -> dict[str, Value]:
    """The metadata that gets another value with the layers `kept`, by its key.

    Raises:
        ArchitectureError: It cannot say this cut.
        PlanError: `kept` is empty or out of range.
    """
    layers = model.layers
    if not kept or not all(type(layer) is int and 0 <= layer < layers for layer in kept):
        raise PlanError(
            f"the kept layers {list(kept)} must be at least one, out of 0–{layers - 1} of "
            f"{model.gguf.file}"
        )
    if _BY_NAME in model.gguf.metadata:
        raise ArchitectureError(
            f"{model.gguf.file} says more of single tensors by their names ({_BY_NAME}), which "
            "depthcut cannot renumber"
        )
    with speaking_of(model.gguf.file):
        try:
            result = cut_metadata(model.config, model.name, Cut(layers, kept))
        except ArchitectureError as error:
            nearby = nearest_removal(
                Cut(model.layers, kept),
                lambda left: cut_metadata(model.config, model.name, Cut(model.layers, left)),
            )
            raise ArchitectureError(f"{error}{nearby}") from error
    changed: dict[str, Value] = {}
    for key, value in result.items():
        if value != model.config[key]:
            assert isinstance(value, int | float | str | tuple)
            changed[model.keys[key]] = value
    return changed


def _kept_tensors(model: GgufModel, kept: Sequence[int]) -> Iterator[_Kept]:
    """In the source's order, with their new names; repeated layers side by side."""
    places: dict[int, list[int]] = defaultdict(list)
    trailing = range(model.layers, model.layers + model.extra)
    for new, old in enumerate((*kept, *trailing)):
        places[old].append(new)
    for tensor in model.gguf.tensors:
        match = LAYER.fullmatch(tensor.name)
        if match is None:
            yield _Kept(tensor.name, tensor)
        else:
            for new in places[int(match[1])]:
                yield _Kept(f"blk.{new}{match[2]}", tensor)


def _entries(gguf: Gguf, changes: Mapping[str, Value], added: Mapping[str, str]) -> Iterator[bytes]:
    for key, entry in gguf.metadata.items():
        if key in added:
            continue
        yield encode_entry(entry, changes[key]) if key in changes else raw_entry(entry)
    for key, text in added.items():
        yield encode_text_entry(key, text)


def _ranges(tensors: list[_Kept], alignment: int) -> Iterator[ByteRange]:
    for kept in tensors:
        tensor = kept.tensor
        yield ByteRange(tensor.file, tensor.start, tensor.stop)
        if padding := -tensor.size_bytes % alignment:
            yield ByteRange(None, 0, padding)


def _copy(target: Path, head: bytes, ranges: Iterator[ByteRange], size_bytes: int) -> None:
    def write(done: Callable[[int], None]) -> None:
        write_ranges(target, head, ranges, done=done)

    if size_bytes >= _PROGRESS_BYTES:
        with progress("slice", size_bytes, unit="bytes") as advance:
            write(advance)
    else:
        write(lambda _: None)


def _check_result(file: Path, tensors: list[_Kept], layers: int) -> None:
    """That the file says what was meant, read as any other."""
    result = gguf_model(read_gguf(file))
    found = [(t.name, t.type, t.shape, t.size_bytes) for t in result.gguf.tensors]
    meant = [(t.name, t.tensor.type, t.tensor.shape, t.tensor.size_bytes) for t in tensors]
    if found != meant or result.layers != layers:
        raise CheckpointError(f"{file} came out wrong, a fault of depthcut; please report it")


def _states(gguf: Gguf) -> list[tuple[int, int, int]]:
    """What tells a changed file, of each part."""
    try:
        states = [file.stat() for file in gguf.files]
    except OSError as error:
        raise CheckpointError(f"cannot read {error.filename}: {error.strerror}") from error
    return [(state.st_ino, state.st_size, state.st_mtime_ns) for state in states]
