"""PyTorch's own weight files (.bin), read without running code into a cached folder of safetensors.

A pickle is a program. torch's weights-only loader runs none of it but the making of tensors, and
refuses a file that wants more.
"""

import hashlib
import json
import logging
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from depthcut.checkpoint.companions import companions
from depthcut.checkpoint.copying import copy_file
from depthcut.checkpoint.folder import INDEX_FILE, SINGLE_FILE, read_object
from depthcut.checkpoint.headers import encode_header
from depthcut.errors import CheckpointError, OutputError
from depthcut.files import new_folder
from depthcut.progress import progress

if TYPE_CHECKING:
    import torch

PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

_FORM = 1
"""Raised whenever what is written changes, so that older cached folders are not taken for it."""
_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}
"""torch's dtypes as safetensors writes them."""
_EXPANDED_BYTES = 1 << 20
"""A tensor may be so much larger than what the file stores of it."""

_log = logging.getLogger(__name__)


def is_pickled(folder: Path) -> bool:
    """Whether a checkpoint folder holds its weights as .bin files only."""
    return any((folder / name).is_file() for name in (PICKLED_FILE, PICKLED_INDEX)) and not any(
        folder.glob("*.safetensors")
    )


def checkpoint_of_pickle(folder: Path, cache: Path) -> Path:
    """The same checkpoint with its weights as safetensors, made in the cache once.

    The folder in the cache is named by the content of all files that go into it, so changed
    weights never meet an old folder. Tensors that share their memory and that transformers ties
    are stored once.

    Raises:
        CheckpointError: A file is damaged, missing, or holds anything but tensors by name.
        OutputError: The cache cannot be written.
    """
    config = read_object(folder / "config.json")
    shards = _shards(folder)
    carried = [Path(name) for name in ("config.json", "README.md") if (folder / name).is_file()]
    carried += companions(folder, config)
    files = [*(Path(name) for name in shards), *carried]
    digest = _digest(folder, files)
    made = cache / f"{folder.resolve().name}-{digest[:16]}-{_FORM}"
    if made.is_dir():
        return made
    needed_bytes = sum((folder / name).stat().st_size for name in shards) + (1 << 20)
    try:
        with new_folder(made, needed_bytes=needed_bytes) as working:
            for path in carried:
                (working / path).parent.mkdir(exist_ok=True)
                copy_file(folder / path, working / path)
            _convert(folder, shards, working)
            if _digest(folder, files) != digest:
                raise CheckpointError(
                    f"{folder} was changed while it was read: run it again when nothing "
                    "writes to it"
                )
    except OutputError as error:
        if made.is_dir():  # another process was first
            return made
        raise OutputError(
            f"cannot fill the cache: {error}; another place can be set by DEPTHCUT_CACHE"
        ) from error
    return made


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """The weight files, and the names that the index promises of each; None: there is no index."""
    if (folder / PICKLED_FILE).is_file():
        return {PICKLED_FILE: None}
    file = folder / PICKLED_INDEX
    weight_map = read_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{file} must hold weight_map, an object from tensors to files")
    shards: defaultdict[str, set[str]] = defaultdict(set)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or set(shard) & set("/\\\0") or not shard.endswith(".bin"):
            raise CheckpointError(
                f"{file} names {shard!r}, which is no .bin file of its folder: refused; "
                "get the checkpoint from a source you trust"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"{file} names {shard}, which is missing; download the whole checkpoint"
            )
        shards[shard].add(name)
    return dict(sorted(shards.items()))


def _digest(folder: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        try:
            status = (folder / path).stat()
            content = _content(folder / path, status.st_size, status.st_mtime_ns, status.st_ino)
        except OSError as error:
            raise CheckpointError(f"cannot read {folder / path}: {error.strerror}") from error
        digest.update(f"{path}\0{content}\0".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _content(file: Path, *_: int) -> str:
    """SHA-256 of a file; computed again if its size, time or place on the disk changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(folder: Path, shards: Mapping[str, set[str] | None], working: Path) -> None:
    total = sum((folder / name).stat().st_size for name in shards)
    weight_map: dict[str, str] = {}
    size_bytes = 0
    with progress(f"convert {folder.name}, once", total, unit="bytes") as advance:
        for number, (name, promised) in enumerate(shards.items(), start=1):
            tensors = _read(folder / name)
            if promised is not None and promised != tensors.keys():
                odd = min(promised ^ tensors.keys())
                raise CheckpointError(
                    f"{folder / PICKLED_INDEX} disagrees with {name} on tensor {odd!r}; download "
                    "the whole checkpoint again"
                )
            tensors = _without_tied(tensors, folder)
            file = SINGLE_FILE
            if len(shards) > 1:
                file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            size_bytes += _write(working / file, tensors)
            weight_map |= dict.fromkeys(tensors, file)
            advance((folder / name).stat().st_size)
    if len(shards) > 1:
        index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        (working / INDEX_FILE).write_text(text, encoding="utf-8")


def _read(file: Path) -> "dict[str, torch.Tensor]":
    """The tensors of one file, by name; where the format allows, they stay on the disk."""
    import torch

    try:
        mapped = zipfile.is_zipfile(file)  # torch's older formats cannot be mapped
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors ({_reason(error)}): refused, and nothing of it was "
            "run; get the model as safetensors"
        ) from error
    except Exception as error:  # whatever a broken file makes the reader raise
        raise CheckpointError(
            f"{file} is damaged ({_reason(error)}); download or save it again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{file} must hold an object from names to tensors, found {type(state).__name__}"
        )
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{file} must hold tensors by name, found {type(tensor).__name__} under "
                f"{str(name)[:80]!r}; save the model's state_dict() alone"
            )
        if tensor.layout != torch.strided or _dtype(tensor) not in _DTYPES or tensor.is_meta:
            raise CheckpointError(
                f"{file}: tensor {name!r} ({_dtype(tensor)}, {tensor.layout}) has no counterpart "
                "in safetensors; convert it first"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes() + _EXPANDED_BYTES:
            raise CheckpointError(
                f"{file}: tensor {name!r} (shape {list(tensor.shape)}) takes {tensor.nbytes:,} "
                f"bytes, the file stores {tensor.untyped_storage().nbytes():,} of it: refused"
            )
        tensors[name] = tensor.detach()
    return tensors


def _without_tied(tensors: "dict[str, torch.Tensor]", folder: Path) -> "dict[str, torch.Tensor]":
    """The tensors without those that are others by another name and that loading ties to them."""
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.nbytes:
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            groups[place].append(name)
    same = {name: group for group in groups.values() if len(group) > 1 for name in group}
    if not same:
        return tensors
    tied = _tied(folder)
    gone = {name for name, group in same.items() if tied.get(name) in group}
    for group in {tuple(group) for group in same.values()}:
        if len(kept := [name for name in group if name not in gone]) > 1:
            _log.warning(
                "%s: %s are one tensor, and transformers does not say that it ties them: each is "
                "stored by itself",
                folder,
                " and ".join(kept),
            )
    return {name: tensor for name, tensor in tensors.items() if name not in gone}


def _tied(folder: Path) -> dict[str, str]:
    """The tensors that transformers does not load but ties, and to which others."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from depthcut.model.quiet import quiet_transformers

    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder)
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            return dict(model.all_tied_weights_keys)
    except Exception:  # a class that is not there, or with code of its own
        return {}


def _write(file: Path, tensors: "Mapping[str, torch.Tensor]") -> int:
    """Write a safetensors file, one tensor in memory at a time; returns the tensors' bytes."""
    # As safetensors does: wide types first, so that each tensor starts at a multiple of its own.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    head = encode_header(
        (
            (name, _DTYPES[_dtype(tensors[name])], tuple(tensors[name].shape), tensors[name].nbytes)
            for name in order
        ),
        {"format": "pt"},
    )
    with file.open("xb") as stream:
        stream.write(head)
        for name in order:
            for part in _parts(tensors[name]):
                stream.write(part)
    return sum(tensor.nbytes for tensor in tensors.values())


def _parts(tensor: "torch.Tensor") -> Iterator[memoryview]:
    import torch

    plain = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    if plain.numel():
        yield plain.view(torch.uint8).numpy().data


def _dtype(tensor: "torch.Tensor") -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    wanted = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
    return (wanted or (lines or [type(error).__name__])[0]).strip()[:200]
