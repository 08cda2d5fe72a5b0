"""GGUF files, dequantised once into a cached bfloat16 checkpoint."""

import contextlib
import hashlib
import io
import json
import tempfile
from pathlib import Path

from depthcut.errors import MissingExtraError, OutputError, SourceError
from depthcut.files import new_folder

_FORM = 1
"""Raised whenever what is written changes, so that older cached folders are not taken for it."""


def checkpoint_of_gguf(file: Path, cache: Path, *, licence: str | None = None) -> Path:
    """The checkpoint folder of a GGUF file, made in the cache where it is not there yet.

    The folder is named by the file's content, so a changed file never meets an old folder, and
    two processes that make it at once both succeed.

    Raises:
        MissingExtraError: The package gguf is not installed.
        SourceError: The file cannot be read or holds no model that transformers knows.
        OutputError: The cache cannot be written.
    """
    folder = cache / f"{file.stem}-{_digest(file)[:16]}-{_FORM}"
    if folder.is_dir():
        return folder
    try:
        with new_folder(folder) as working:
            _convert(file, working, licence)
    except OutputError as error:
        if folder.is_dir():  # another process was first
            return folder
        raise OutputError(
            f"cannot fill the cache: {error}; another place can be set by DEPTHCUT_CACHE"
        ) from error
    return folder


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"cannot read {file}: {error.strerror}") from error


def _convert(file: Path, folder: Path, licence: str | None) -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise MissingExtraError("gguf", "gguf", f"the file {file.name}")
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from depthcut.model.quiet import quiet_transformers
    from depthcut.progress import progress

    # transformers before GgufConfig always dequantised; since, it keeps the weights packed.
    config = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": config(dequantize=True)} if config else {}
    with (
        progress(f"unpack {file.name}, once", 3, unit="steps") as advance,
        quiet_transformers(),
        tempfile.TemporaryDirectory() as alone,
    ):
        # In a folder of its own: transformers would mix in a tokenizer that lies beside it.
        Path(alone, file.name).symlink_to(file.resolve())
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the converter's own bar
                model = AutoModelForCausalLM.from_pretrained(
                    alone, gguf_file=file.name, dtype=torch.bfloat16, **options
                )
                advance(1)
                tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name)
        except Exception as error:  # whatever a broken file makes the readers raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SourceError(f"{file} holds no model that can be read: {reason}") from error
        advance(1)
        fields = _fields(file)
        _mend_tokenizer(tokenizer, fields)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        advance(1)
    positions = model.config.max_position_embeddings
    _edit(folder / "config.json", drop=("_model_name_or_path", "quantization_config"))
    _edit(
        folder / "tokenizer_config.json",
        drop=("is_local", "local_files_only", "backend", "gguf_file"),
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=positions,
    )
    (folder / "README.md").write_text(_card(file, fields), encoding="utf-8")
    if licence:
        (folder / "LICENSE").write_text(licence, encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)


def _fields(file: Path) -> dict[str, str]:
    """The file's textual metadata, short ones."""
    from gguf import GGUFReader

    found = {}
    for name, field in GGUFReader(file).fields.items():
        if name.startswith(("general.", "tokenizer.ggml.pre", "GGUF.")):
            found[name] = str(field.contents())
    return found


def _mend_tokenizer(tokenizer: object, fields: dict[str, str]) -> None:
    """Give back the digit rule of SmolLM, which transformers' GGUF reader drops.

    Without it, white space before a digit is cut otherwise than the model was trained on.
    """
    if fields.get("tokenizer.ggml.pre") != "smollm":
        return
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]  # fast ones have it
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )


def _edit(file: Path, drop: tuple[str, ...], **changes: object) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    for key in drop:
        content.pop(key, None)
    content.update(changes)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _card(file: Path, fields: dict[str, str]) -> str:
    name = fields.get("general.name", file.stem)
    licence = fields.get("general.license")
    front = f"---\nlicense: {licence}\n---\n\n" if licence else ""
    maker = fields.get("general.organization")
    by = f" by {maker}" if maker else ""
    return (
        f"{front}# {file.stem}\n\n"
        f"{name}{by}, dequantised to bfloat16 from `{file.name}` by depthcut"
        f"{f'; licence: {licence}' if licence else ''}.\n"
    )
