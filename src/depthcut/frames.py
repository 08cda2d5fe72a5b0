"""Tables for notebooks: plain HTML, and a data frame where pandas is there."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from depthcut.errors import MissingExtraError

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Sequence[str | int | float | None]


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Row]) -> str:
    """An HTML table, all text escaped; numbers to four significant digits, None as a dash."""
    head = "".join(f"<th scope='col'>{escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_shown(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def data_frame(columns: Sequence[str], rows: Iterable[Row]) -> "DataFrame":
    """The rows as a pandas data frame.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    try:
        from pandas import DataFrame
    except ImportError as error:
        raise MissingExtraError("pandas", "all", "to_frame") from error
    return DataFrame(list(rows), columns=list(columns))


def _shown(value: str | int | float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else value
