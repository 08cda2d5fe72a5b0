"""A checkpoint folder: its config, its tensors wherever they lie, and its digest."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from depthcut.architectures.configs import (
    EXTRA_LAYERS,
    cut_config,
    decoder_config,
    find_architecture,
    hidden_size,
    layer_count,
)
from depthcut.architectures.names import LayerNames
from depthcut.architectures.table import Architecture
from depthcut.architectures.values import Config
from depthcut.checkpoint.headers import Header, TensorEntry, read_header
from depthcut.errors import ArchitectureError, CheckpointError
from depthcut.records import ModelFacts

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_DTYPE_NAMES = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "U8": "uint8",
    "I8": "int8",
    "I32": "int32",
}
_VOLATILE_KEYS = frozenset({"_name_or_path", "transformers_version", "_commit_hash"})
"""Config keys that say who saved the checkpoint, not what it is."""
_BUFFERS = frozenset(
    {
        *("self_attn.rotary_emb.inv_freq", "attention.rotary_emb.inv_freq"),
        *("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias"),
        *("attn.attention.bias", "attn.attention.masked_bias", "attn.causal_mask"),
    }
)
"""Tensors of a layer that old checkpoints carry and that are no parameters."""
_PREDICTS = ("eh_proj.", "enorm.", "hnorm.", "shared_head.")
"""Tensors of layers behind the stack that predict further tokens."""
_DIGEST_BYTES = 4096
"""Of each tensor."""
_MOST_NESTED = 100
"""Objects and lists within each other, in JSON."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: headers read and checked, no weights in memory."""

    folder: Path
    config: dict[str, object]
    shards: tuple[Header, ...]
    """In the order of their names."""
    index: dict[str, object] | None
    """The index file's content; None: one file holds everything."""

    @cached_property
    def tensors(self) -> dict[str, TensorEntry]:
        """All tensors by name."""
        return {entry.name: entry for shard in self.shards for entry in shard.tensors}

    @property
    def decoder_config(self) -> Config:
        """The part of the config that speaks of the text decoder."""
        return decoder_config(self.config, self.architecture)

    @cached_property
    def architecture(self) -> Architecture:
        """Where the layers lie and what the config says of them.

        Raises:
            ArchitectureError: The stack cannot be found.
        """
        return find_architecture(self.config, self.tensors)

    @cached_property
    def layers(self) -> int:
        """How many layers it has: as its config says, else as many as its tensors hold.

        Raises:
            ArchitectureError: The stack cannot be found.
            CheckpointError: The config contradicts itself.
        """
        count = layer_count(self.config, self.architecture)
        if count is not None:
            return count
        names = LayerNames(self.architecture.stacks)
        return 1 + max((names.layer(name) or 0 for name in self.tensors), default=0)

    @cached_property
    def extra_layers(self) -> frozenset[int]:
        """Layers behind the stack that only predict further tokens."""
        names = LayerNames(self.architecture.stacks)
        predicting = self.decoder_config.get(EXTRA_LAYERS)
        count = predicting if type(predicting) is int and 0 < predicting < 100 else 0
        announced = range(self.layers, self.layers + count)
        behind = {
            layer: names.tail(name)
            for name in self.tensors
            if (layer := names.layer(name)) is not None and layer >= self.layers
            if layer in announced or names.tail(name).startswith(_PREDICTS)
        }
        return frozenset(behind)

    def cut_config(self, kept: Sequence[int]) -> dict[str, object]:
        """The config of the model that is made of these layers; see `configs.cut_config`."""
        return cut_config(
            self.config,
            kept,
            self.architecture,
            self.layers,
            extra=len(self.extra_layers),
        )

    @property
    def weight_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.tensors.values())

    def refuse_changed(self) -> None:
        """Raise CheckpointError if a weight file is no longer the one whose header was read."""
        for shard in self.shards:
            status = shard.file.stat()
            if (status.st_size, status.st_mtime_ns) != (shard.size_bytes, shard.modified_ns):
                raise CheckpointError(
                    f"{shard.file} was changed while it was read: run it again when nothing "
                    "writes to it"
                )


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read what a folder holds: config, index, the header of every weight file.

    Raises:
        CheckpointError: No folder, config or safetensors weights; a damaged header; an index that
            names a missing shard or a path outside the folder, or disagrees with its shards.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}: a checkpoint folder is needed")
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} is a PEFT adapter, and a whole model is needed: merge it into its base "
            "(merge_and_unload) and save that"
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json: a folder as save_pretrained writes it is needed"
        )
    for name in ("config.json", "README.md"):
        refuse_outside(folder / name, folder)
    config = read_object(folder / "config.json")
    weights = _weights_file(folder, config)
    refuse_outside(weights, folder)
    if not weights.name.endswith(".index.json"):
        return Checkpoint(folder, config, (read_header(weights),), None)
    index = read_object(weights)
    shard_of = _weight_map(weights, index)
    files = [folder / name for name in sorted(set(shard_of.values()))]
    for file in files:
        refuse_outside(file, folder)
    shards = tuple(map(read_header, files))
    _check_index(weights, shard_of, shards)
    return Checkpoint(folder, config, shards, index)


def refuse_outside(file: Path, folder: Path) -> None:
    """Raise CheckpointError if a file of a folder is a link to something outside of it.

    The cache of hub snapshots is made of links from snapshots/COMMIT/NAME to blobs/HASH beside
    it; these are as good as files.
    """
    relative = file.relative_to(folder)
    parts = (relative, *relative.parents[:-1])
    if not any((folder / part).is_symlink() for part in parts):
        return
    try:
        real, home = file.resolve(), folder.resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise CheckpointError(f"cannot read {file}: {error}") from error
    places = [home]
    if home.parent.name == "snapshots":
        places.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in places):
        raise CheckpointError(
            f"{file} is a link to {real}, outside of its folder: refused; give the folder that it "
            "points to, or copy the file"
        )


def model_facts(checkpoint: Checkpoint, *, source: str) -> ModelFacts:
    """What the checkpoint says of itself.

    The digest covers the config, each tensor's name, dtype and shape and its first 4 KiB, and
    is the same however the tensors are spread over files.

    Args:
        checkpoint: An opened checkpoint.
        source: How the user named the model.

    Raises:
        ArchitectureError: The model type is not supported.
        CheckpointError: Config and tensors disagree on the number of layers.
    """
    architecture = checkpoint.architecture
    if architecture.refusal:
        raise ArchitectureError(f"{checkpoint.config.get('model_type')}: {architecture.refusal}")
    names = LayerNames(architecture.stacks)
    layers = checkpoint.layers
    extra = checkpoint.extra_layers
    by_layer: Counter[int] = Counter()
    other_parameters = 0
    for entry in checkpoint.tensors.values():
        layer = names.layer(entry.name)
        if layer is None or layer in extra:
            other_parameters += entry.elements
        else:
            by_layer[layer] += 0 if names.tail(entry.name) in _BUFFERS else entry.elements
    found = by_layer.keys()
    if len(found) != layers or max(found) >= layers:  # before anything as long as `layers` is made
        raise CheckpointError(
            f"{checkpoint.folder}: config.json speaks of {layers} layers, the weights hold "
            f"{len(found)} under {architecture.stacks[0]}; get config and weights that belong "
            "together"
        )
    return ModelFacts(
        source=source,
        digest=_digest(checkpoint),
        model_type=str(checkpoint.config["model_type"]),
        layers=layers,
        hidden_size=_width(checkpoint),
        dtype=_dtype(checkpoint),
        layer_parameters=tuple(by_layer[layer] for layer in range(layers)),
        other_parameters=other_parameters,
        weight_bytes=checkpoint.weight_bytes,
    )


def read_object(file: Path) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        CheckpointError: The file cannot be read or holds something else, text that no file can
            hold, or more lists in lists than can be walked.
    """
    try:
        text = file.read_bytes().decode()
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # not half a character
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON in UTF-8 ({error}); correct it") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, found {type(value).__name__}")
    if _is_deeper(value, _MOST_NESTED):
        raise CheckpointError(
            f"{file} has objects or lists nested more than {_MOST_NESTED} deep; correct it"
        )
    return value


def _is_deeper(value: object, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        containers = (each.values() if isinstance(each, dict) else each for each in level)
        level = [e for entries in containers for e in entries if isinstance(e, dict | list)]  # type: ignore[attr-defined]
    return bool(level)


def _weights_file(folder: Path, config: Mapping[str, object]) -> Path:
    """The file that transformers would load: its explicit name, the single file, the index."""
    named = config.get("transformers_weights")
    if isinstance(named, str):
        if not _plain_name(named) or not named.endswith((".safetensors", ".index.json")):
            raise CheckpointError(
                f"{folder / 'config.json'}: transformers_weights {named!r} must be the name of a "
                "safetensors file or index in the same folder"
            )
        if not (folder / named).is_file():
            raise CheckpointError(f"{folder} has no {named}, which its config.json names")
        return folder / named
    for name in (SINGLE_FILE, INDEX_FILE):
        if (folder / name).is_file():
            return folder / name
    others = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in {".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".safetensors"}
    )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in others):
        raise CheckpointError(
            f"{folder} has no safetensors weights, only {others[0]}: let it be read with "
            "--allow-pickle, or convert it once with transformers' save_pretrained"
        )
    found = f"; found {', '.join(others[:3])}" if others else ""
    pickled = "; a hub model that has .bin files only needs --allow-pickle" if not others else ""
    raise CheckpointError(
        f"{folder} has no weights: {SINGLE_FILE} or {INDEX_FILE} needed{found}{pickled}"
    )


def _plain_name(name: str) -> bool:
    """Whether a name stays in its folder; for links see `refuse_outside`."""
    named = name.isprintable() and name not in {"", ".", ".."} and len(name.encode()) < 256
    return named and not set(name) & set("/\\")


def _weight_map(file: Path, index: Mapping[str, object]) -> dict[str, str]:
    weight_map = index.get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(f"{file} must hold weight_map, an object from tensors to files")
    for name in set(weight_map.values()):
        if not _plain_name(name):
            raise CheckpointError(
                f"{file} names {name!r}, which is no file of its folder: refused; "
                "get the checkpoint from a source you trust"
            )
        if not (file.parent / name).is_file():
            raise CheckpointError(
                f"{file} names {name}, which is missing; download the whole checkpoint"
            )
    return dict(weight_map)


def _check_index(file: Path, shard_of: Mapping[str, str], shards: tuple[Header, ...]) -> None:
    held = [(entry.name, entry.file.name) for shard in shards for entry in shard.tensors]
    name, times = Counter(name for name, _ in held).most_common(1)[0] if held else ("", 0)
    if times > 1:
        raise CheckpointError(
            f"{file.parent}: tensor {name!r} lies in {times} shards; save the checkpoint again"
        )
    if wrong := set(held) ^ set(shard_of.items()):
        tensor, shard = min(wrong)
        claim = "is promised by the index but not" if (tensor, shard) not in held else "lies"
        tail = "" if claim != "lies" else ", which the index does not say"
        raise CheckpointError(
            f"{file} disagrees with its shards: tensor {tensor!r} {claim} in {shard}{tail}; "
            "download the whole checkpoint again"
        )


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256()
    config = {key: value for key, value in checkpoint.config.items() if key not in _VOLATILE_KEYS}
    digest.update(json.dumps(config, sort_keys=True).encode())
    with ExitStack() as stack:
        handles: dict[Path, int] = {}
        for shard in checkpoint.shards:
            stream = stack.enter_context(shard.file.open("rb", buffering=0))
            handles[shard.file] = stream.fileno()
        for name, entry in sorted(checkpoint.tensors.items()):
            digest.update(json.dumps([name, entry.dtype, entry.shape]).encode())
            length = min(_DIGEST_BYTES, entry.size_bytes)
            digest.update(os.pread(handles[entry.file], length, entry.start))
    return digest.hexdigest()


def _width(checkpoint: Checkpoint) -> int:
    width = hidden_size(checkpoint.config, checkpoint.architecture)
    if width is not None:
        return width
    names = LayerNames(checkpoint.architecture.stacks)
    for name, entry in checkpoint.tensors.items():  # as long as a norm of the first layer
        if names.layer(name) == 0 and "norm" in name and len(entry.shape) == 1:
            return entry.shape[0]
    raise CheckpointError(f"{checkpoint.folder}: config.json must give hidden_size; add it")


def _dtype(checkpoint: Checkpoint) -> str:
    sizes: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        sizes[entry.dtype] += entry.size_bytes
    if not sizes:
        return "none"
    dtype = sizes.most_common(1)[0][0]
    return _DTYPE_NAMES.get(dtype, dtype.lower())
