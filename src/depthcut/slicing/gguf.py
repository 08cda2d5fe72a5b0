"""A GGUF file cut to some of its layers: bytes copied, names and metadata cut."""

import contextlib
import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from depthcut.architectures.configs import nearest_removal
from depthcut.architectures.fields import Cut
from depthcut.checkpoint.copying import ByteRange, write_ranges
from depthcut.errors import ArchitectureError, CheckpointError, PlanError
from depthcut.files import new_file, refuse_existing
from depthcut.gguf.fields import EXTRA_BLOCKS
from depthcut.gguf.file import (
    Gguf,
    encode_entry,
    encode_head,
    encode_text_entry,
    raw_entry,
    read_gguf,
)
from depthcut.gguf.layers import BLOCK_COUNT, cut_metadata, layer_counts
from depthcut.gguf.part import GgufTensor, Value
from depthcut.progress import progress
from depthcut.records import ModelFacts

OWN_PREFIX = "depthcut."
"""Of the keys that say how a file was made."""

_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,7})(\..+)", re.DOTALL)
_OTHER_PREFIXES = ("general.", "tokenizer.", "quantize.", "imatrix.", "adapter.", OWN_PREFIX)
_OTHER_STACK = re.compile(r".+\.blk\.|blk\.(?![0-9]+\.)|(?:.+\.)?(?:layers|h)\.[0-9]+\.")
_BY_NAME = "general.tensor_extra.name"
_BUFFERS = re.compile(r"(?:.+\.)?(?:rope_freqs|rope_factors_(?:long|short)|attn_rot_embd)\.weight")
"""Tensors that are no parameters."""
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_DIGEST_BYTES = 4096
"""Of each tensor."""
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


def gguf_facts(file: Path, *, source: str) -> ModelFacts:
    """What a GGUF file says of itself.

    The digest covers the metadata, each tensor's name, type and shape and its first 4 KiB, and
    is the same however the file is split. What depthcut says of the file's making is left out.

    Args:
        file: A GGUF file, or the first of its parts.
        source: How the user named the model.

    Raises:
        CheckpointError: The file is damaged, or metadata and tensors disagree.
        ArchitectureError: Its architecture is unknown or has no layers to cut.
    """
    model = gguf_model(read_gguf(file))
    layer_parameters = [0] * model.layers
    other_parameters = 0
    types: Counter[str] = Counter()
    for tensor in model.gguf.tensors:
        types[tensor.type_name] += tensor.size_bytes
        layer = _layer(tensor.name)
        elements = 0 if _BUFFERS.fullmatch(tensor.name) else tensor.elements
        if layer is not None and layer < model.layers:
            layer_parameters[layer] += elements
        else:
            other_parameters += elements
    dtype = types.most_common(1)[0][0]
    width = model.config.get("embedding_length")
    if type(width) is not int or width < 1:
        raise CheckpointError(
            f"{file}: {model.name}.embedding_length must be a positive number, found {width!r}; "
            "convert the model again"
        )
    return ModelFacts(
        source=source,
        digest=_digest(model.gguf),
        model_type=model.name,
        layers=model.layers,
        hidden_size=width,
        dtype=_DTYPE_NAMES.get(dtype, dtype.lower()),
        layer_parameters=tuple(layer_parameters),
        other_parameters=other_parameters,
        weight_bytes=sum(tensor.size_bytes for tensor in model.gguf.tensors),
    )


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A file with what its metadata says of layers."""

    gguf: Gguf
    name: str
    """general.architecture."""
    config: dict[str, object]
    keys: dict[str, str]
    """From the config's keys to those of the metadata."""
    layers: int
    extra: int


@dataclass(frozen=True, slots=True)
class _Kept:
    name: str
    tensor: GgufTensor


def gguf_model(gguf: Gguf) -> GgufModel:
    """What the metadata says of layers, checked against the tensors.

    Raises:
        CheckpointError: They disagree.
        ArchitectureError: The architecture is unknown or has no layers to cut.
    """
    entry = gguf.metadata.get("general.architecture")
    if entry is None or not isinstance(entry.value, str) or entry.is_array:
        raise CheckpointError(
            f"{gguf.file} has no general.architecture, so that nobody can tell what it is; "
            "convert the model again"
        )
    name = entry.value
    kind = gguf.metadata.get("general.type")
    if kind is not None and kind.value != "model":
        raise ArchitectureError(
            f"{gguf.file} holds no whole model (general.type is {kind.value!r}): give the file of "
            "the model"
        )
    config, keys = _config(gguf, name)
    with _named(gguf.file):
        layers, extra = layer_counts(config, name)
    found = {_layer(tensor.name) for tensor in gguf.tensors} - {None}
    if len(found) != layers + extra or found != set(range(layers + extra)):
        raise CheckpointError(
            f"{gguf.file} speaks of {layers + extra} layers ({name}.block_count), its tensors make "
            f"up {len(found)}; download or convert it again"
        )
    for tensor in gguf.tensors:
        if _OTHER_STACK.match(tensor.name):
            raise ArchitectureError(
                f"{gguf.file} has the tensor {tensor.name[:80]!r}, which seems to belong to a list "
                f"of layers other than blk; depthcut does not know such a {name}"
            )
    return GgufModel(gguf, name, config, keys, layers, extra)


def _config(gguf: Gguf, name: str) -> tuple[dict[str, object], dict[str, str]]:
    """The architecture's own keys without its name, and the foreign ones."""
    config: dict[str, object] = {}
    keys: dict[str, str] = {}
    blocks = _number(gguf, f"{name}.{BLOCK_COUNT}")
    lengths = (blocks, blocks - _number(gguf, f"{name}.{EXTRA_BLOCKS}"))
    for key, entry in gguf.metadata.items():
        short = key.removeprefix(f"{name}.")
        foreign = short == key and not (entry.is_array and entry.length in lengths)
        if foreign or key.startswith(_OTHER_PREFIXES):
            continue
        if short in config:
            raise CheckpointError(f"{gguf.file} has {keys[short]} and {key}; remove one of them")
        undecoded = entry.is_array and entry.value is None
        config[short], keys[short] = (None,) if undecoded else entry.value, key
    return config, keys


def _number(gguf: Gguf, key: str) -> int:
    entry = gguf.metadata.get(key)
    return entry.value if entry is not None and type(entry.value) is int else 0


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
    with _named(model.gguf.file):
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


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    """Fields speak of a config.json; here it is this file's metadata."""
    try:
        yield
    except ArchitectureError as error:
        text = str(error).replace("config.json", "the metadata")
        raise ArchitectureError(f"{file}: {text}") from error


def _layer(name: str) -> int | None:
    match = _LAYER.fullmatch(name)
    return int(match[1]) if match else None


def _kept_tensors(model: GgufModel, kept: Sequence[int]) -> Iterator[_Kept]:
    """In the source's order, with their new names; repeated layers side by side."""
    places: dict[int, list[int]] = defaultdict(list)
    trailing = range(model.layers, model.layers + model.extra)
    for new, old in enumerate((*kept, *trailing)):
        places[old].append(new)
    for tensor in model.gguf.tensors:
        match = _LAYER.fullmatch(tensor.name)
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


def _digest(gguf: Gguf) -> str:
    digest = hashlib.sha256()
    for key in sorted(gguf.metadata):
        if not key.startswith(OWN_PREFIX):
            digest.update(raw_entry(gguf.metadata[key]))
    with ExitStack() as stack:
        handles: dict[Path, int] = {}
        for file in gguf.files:
            handles[file] = stack.enter_context(file.open("rb", buffering=0)).fileno()
        for tensor in sorted(gguf.tensors, key=lambda tensor: tensor.name):
            digest.update(json.dumps([tensor.name, tensor.type, tensor.shape]).encode())
            length = min(_DIGEST_BYTES, tensor.size_bytes)
            digest.update(os.pread(handles[tensor.file], length, tensor.start))
    return digest.hexdigest()
