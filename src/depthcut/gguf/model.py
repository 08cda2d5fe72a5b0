"""A GGUF file as a model: what its metadata says of layers, checked against its tensors."""

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from depthcut.errors import ArchitectureError, CheckpointError
from depthcut.gguf.fields import EXTRA_BLOCKS
from depthcut.gguf.file import Gguf, raw_entry, read_gguf
from depthcut.gguf.layers import BLOCK_COUNT, layer_counts
from depthcut.records import ModelFacts

OWN_PREFIX = "depthcut."
"""Of the keys that say how a file was made."""

LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,7})(\..+)", re.DOTALL)
"""A tensor of a layer: which, and its name within it."""
_OTHER_PREFIXES = ("general.", "tokenizer.", "quantize.", "imatrix.", "adapter.", OWN_PREFIX)
_OTHER_STACK = re.compile(r".+\.blk\.|blk\.(?![0-9]+\.)|(?:.+\.)?(?:layers|h)\.[0-9]+\.")
_BUFFERS = re.compile(r"(?:.+\.)?(?:rope_freqs|rope_factors_(?:long|short)|attn_rot_embd)\.weight")
"""Tensors that are no parameters."""
_DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_DIGEST_BYTES = 4096
"""Of each tensor."""


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
        layer = layer_of(tensor.name)
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
    with speaking_of(gguf.file):
        layers, extra = layer_counts(config, name)
    found = {layer_of(tensor.name) for tensor in gguf.tensors} - {None}
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


@contextlib.contextmanager
def speaking_of(file: Path) -> Iterator[None]:
    """Fields speak of a config.json; here it is this file's metadata."""
    try:
        yield
    except ArchitectureError as error:
        text = str(error).replace("config.json", "the metadata")
        raise ArchitectureError(f"{file}: {text}") from error


def layer_of(name: str) -> int | None:
    match = LAYER.fullmatch(name)
    return int(match[1]) if match else None


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
