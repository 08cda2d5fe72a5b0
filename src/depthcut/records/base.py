"""What every record is, and how it is read, written and dated."""

import hashlib
import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from depthcut.errors import RecordError
from depthcut.files import write_file
from depthcut.settings import Settings


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records: immutable, keyword-only, unknown keys refused."""


class _Kind(msgspec.Struct):
    kind: str = ""


class Origin(Record, frozen=True, kw_only=True):
    """Where a record came from: enough to make it again."""

    inputs: str
    """Digest of everything the result depends on (settings, model, text): see `inputs_digest`."""
    seconds: float
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    machine: str

    @classmethod
    def since(cls, started: float, *, inputs: str) -> Self:
        """The origin of what was begun at `time.monotonic()` = `started` and is done now."""
        return cls(
            inputs=inputs,
            seconds=round(time.monotonic() - started, 3),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        )


R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """The record in a JSON file.

    Raises:
        RecordError: No such file, not JSON, not this kind of record, or from another version.
    """
    name = kind.__name__.removesuffix("Record").lower()
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise RecordError(f"no file {path}: expected {_a(name)} record") from error
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        found, why = kind_of(path), " ".join(str(error).split())
        if found and found.replace("-", "") != name:
            raise RecordError(
                f"{path} is not {_a(name)}: it is {_a(found)}; give {_a(name)}"
            ) from error
        raise RecordError(
            f"{path} is not {_a(name)} of this depthcut: {why}; make it again with this version"
        ) from error


def _a(name: str) -> str:
    return f"an {name}" if name[:1] in tuple("aeio") else f"a {name}"


def kind_of(path: Path) -> str:
    """What kind of record a file says that it holds; empty: it says nothing that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Kind).kind
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return ""


def write_record(record: Record, path: Path, *, overwrite: bool = False) -> None:
    """Write a record as indented JSON; whole or not at all.

    Raises:
        OutputError: The file exists and `overwrite` is off, or the place cannot be written.
    """
    content = msgspec.json.format(msgspec.json.encode(record), indent=1)
    write_file(path, content + b"\n", overwrite=overwrite)


def inputs_digest(*parts: str | Settings | Record | Sequence[str]) -> str:
    """SHA-256 (hex, first 32 digits) over strings, settings and records, in order."""
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:32]


@cache
def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("depthcut", "torch", "transformers", "tokenizers", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
