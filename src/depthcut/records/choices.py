"""The two records that a plan is chosen from, told apart."""

from pathlib import Path

import msgspec

from depthcut.errors import RecordError
from depthcut.records.base import read_record
from depthcut.records.search import Search
from depthcut.records.survey import Survey


class _Kind(msgspec.Struct):
    kind: str = ""


def read_choice(path: Path) -> Survey | Search:
    """The survey or search in a JSON file.

    Raises:
        RecordError: No such file, not JSON, another kind of record, or from another version.
    """
    try:
        kind = msgspec.json.decode(path.read_bytes(), type=_Kind).kind
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        kind = ""
    if kind == "search":
        return read_record(path, Search)
    try:
        return read_record(path, Survey)
    except RecordError as error:
        if kind and kind != "survey":
            raise RecordError(
                f"{path} is a {kind}, and a plan is chosen from a survey or a search"
            ) from error
        raise
