"""What a setting of texts says: names, each with its columns and the weight behind its colon."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from depthcut.errors import SettingsError
from depthcut.settings import Texts

STANDARD_INPUT = "-"

_WITH_COLUMNS = re.compile(r"(.+)\[([^\[\]]+)\]", re.DOTALL)
_WEIGHTED = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)


class NamedText(NamedTuple):
    """One text that is asked for."""

    name: str
    columns: tuple[str, ...]
    """Its own; none: those that the settings name for all."""
    weight: float
    """Its share of the tokens is this over the sum of all weights."""

    @property
    def without_weight(self) -> str:
        """As it was named, but for the weight."""
        return f"{self.name}[{','.join(self.columns)}]" if self.columns else self.name


def named_texts(texts: Texts) -> tuple[NamedText, ...]:
    """The texts: chat.jsonl[question,answer]:2 has two columns and the weight 2; left out, it is 1.

    What is there under the whole name is meant by it, colon and all: a file "a:2" is given the
    weight 3 by "a:2:3".

    Raises:
        SettingsError: No text, a weight that is no share, or standard input twice.
    """
    found = tuple(_named(each) for each in ((texts,) if isinstance(texts, str) else texts))
    if not found:
        raise SettingsError("no text: give at least one with --text, or leave it out for builtin")
    if sum(each.name == STANDARD_INPUT for each in found) > 1:
        raise SettingsError("standard input (-) can be read only once: name it once")
    return found


def in_words(texts: Texts) -> str:
    """The texts as they were named, for a line that a person reads."""
    return texts if isinstance(texts, str) else " + ".join(texts)


def exists(path: Path) -> bool:
    """Whether there is anything under this name; a name that no file can have is none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _named(text: str) -> NamedText:
    if not text.strip():
        raise SettingsError("--text '' names no text: leave it out for builtin")
    name, weight = text, 1.0
    match = None if _is_there(text) else _WEIGHTED.fullmatch(text)
    if match is not None:
        name, weight = match[1], float(match[2])
        if not (weight > 0 and math.isfinite(weight)):
            raise SettingsError(
                f"--text {text}: the weight behind the colon is a share, a number above 0 such as 2"
            )
    match = None if _is_there(name) else _WITH_COLUMNS.fullmatch(name)
    if match is None:
        return NamedText(name, (), weight)
    columns = tuple(re.split(r"[,\s]+", match[2].strip(", ")))
    return NamedText(match[1], columns, weight)


def _is_there(name: str) -> bool:
    return exists(Path(name).expanduser())
