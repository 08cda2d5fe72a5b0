"""The two records that a plan is chosen from, told apart."""

from pathlib import Path

from depthcut.errors import RecordError
from depthcut.records.base import kind_of, read_record
from depthcut.records.search import Search
from depthcut.records.survey import Survey


def read_choice(path: Path) -> Survey | Search:
    """The survey or search in a JSON file.

    Raises:
        RecordError: No such file, not JSON, another kind of record, or from another version.
    """
    if not path.exists():
        raise RecordError(
            f"no file {path}: a plan is chosen from a survey or a search; make one first "
            "(depthcut survey, depthcut search)"
        )
    kind = kind_of(path)
    if kind == "search":
        return read_record(path, Search)
    if kind and kind != "survey":
        raise RecordError(f"{path} is a {kind}, and a plan is chosen from a survey or a search")
    return read_record(path, Survey)
