"""What was measured before: kept in the cache by a digest of all that it depends on."""

import gzip
import logging
import tempfile
import zlib
from pathlib import Path
from typing import TypeVar

import msgspec

from depthcut.errors import OutputError
from depthcut.files import write_file
from depthcut.model.sources import cache_folder
from depthcut.records import Record

_log = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


def find(key: str, kind: type[R]) -> R | None:
    """What is kept under a key; None: nothing, or nothing that can be read."""
    try:
        return msgspec.json.decode(gzip.decompress(_place(key).read_bytes()), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, msgspec.DecodeError) as error:
        _log.debug("measured anew: %s", error)
        return None


def keep(key: str, record: Record) -> None:
    """Keep a record; a cache that cannot be written is a warning, for the work is done."""
    content = gzip.compress(msgspec.json.encode(record), compresslevel=5, mtime=0)
    try:
        write_file(_place(key), content, overwrite=True)
    except OutputError as error:
        reason = error.__cause__ or error
        _log.warning("not kept for another time, let DEPTHCUT_CACHE name a folder: %s", reason)


def half_done(key: str, *, fresh: bool) -> Path:
    """Where what is being measured may keep its parts, so that a killed command goes on.

    Names of files begin by this; `fresh` removes those of a killed command.

    Raises:
        OutputError: The cache cannot be written.
    """
    folder = cache_folder() / "evaluations"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputError(
            f"answers cannot be kept in {folder}: {error.strerror}; let DEPTHCUT_CACHE name a "
            "folder that can be written"
        ) from error
    parts = folder / f"{key}.parts"
    for path in folder.glob(f"{parts.name}*") if fresh else ():
        path.unlink(missing_ok=True)
    return parts


def _place(key: str) -> Path:
    return cache_folder() / "evaluations" / f"{key}.json.gz"
