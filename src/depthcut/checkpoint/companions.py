"""Which of a checkpoint's other files still hold once layers are gone, and how they are carried."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from depthcut.architectures.names import ModuleNames
from depthcut.checkpoint.copying import copy_file
from depthcut.checkpoint.folder import read_object, refuse_outside

_REPLACED = frozenset({"config.json", "README.md", "plan.json", "depthcut.json"})
"""Written anew for the sliced model."""

_WEIGHT_SUFFIXES = frozenset(
    {
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".onnx_data",
        ".gguf",
        ".ggml",
        ".ot",
        ".tflite",
        ".mlmodel",
        ".pdparams",
        ".npz",
        ".npy",
        ".nemo",
        ".llamafile",
        ".engine",
        ".distcp",
        ".zip",
        ".tar",
        ".gz",
    }
)
"""Weights in other forms, and states of optimizers: of the model with all its layers."""

_PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf", ".ipynb"})
"""They belong to the parent's model card."""

_STALE_NAMES = frozenset(
    {
        "params.json",  # the layer count in the form of the original release
        "adapter_config.json",
        "trainer_state.json",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
        "survey.json",
        "evaluation.json",
        "report.html",
    }
)
_QUANTIZATION_NAMES = frozenset(
    {
        *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
        "quantization_config.json",
    }
)
"""They may name modules by layer."""

_CARRIED_FOLDERS = ("additional_chat_templates",)


def companions(folder: Path, config: Mapping[str, object]) -> Iterator[Path]:
    """The files that hold for any cut, as paths relative to `folder`: tokenizer, chat templates,
    generation config, licence; Python code only where the config asks for it.

    Raises:
        CheckpointError: One is a link out of the folder.
    """
    for path in sorted(folder.iterdir()):
        if path.is_file() and _holds(path.name, code="auto_map" in config):
            refuse_outside(path, folder)
            yield Path(path.name)
    for name in _CARRIED_FOLDERS:
        for path in sorted((folder / name).glob("*")):
            if path.is_file() and _holds(path.name, code=False):
                refuse_outside(path, folder)
                yield Path(name, path.name)


def companions_digest(folder: Path, config: Mapping[str, object]) -> str:
    """SHA-256 of the companions: with the weights' own, all that a model's answers depend on."""
    digest = hashlib.sha256()
    for relative in companions(folder, config):
        with (folder / relative).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{relative}\0{content}\n".encode())
    return digest.hexdigest()


def carry_companions(
    folder: Path, config: Mapping[str, object], out: Path, names: ModuleNames
) -> None:
    """Copy the companions from `folder` to `out`, module names in them renumbered.

    Raises:
        ArchitectureError: A file names layers in a way that cannot be renumbered.
        CheckpointError: A file cannot be read.
    """
    for relative in companions(folder, config):
        (out / relative).parent.mkdir(exist_ok=True)
        if relative.name in _QUANTIZATION_NAMES:
            settings = names.renumbered(read_object(folder / relative))
            (out / relative).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        else:
            copy_file(folder / relative, out / relative)


def _holds(name: str, *, code: bool) -> bool:
    suffix = Path(name).suffix.lower()
    return not (
        name.startswith(".")
        or name in _REPLACED | _STALE_NAMES
        or name.endswith(".index.json")
        or name.startswith(("rng_state", "events.out.tfevents"))
        or suffix in _WEIGHT_SUFFIXES | _PICTURE_SUFFIXES
        or (suffix == ".py" and not code)
    )
