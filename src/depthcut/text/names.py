"""What a setting of texts says: names, each with the weight behind its colon."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from depthcut.errors import SettingsError
from depthcut.settings import Texts

STANDARD_INPUT = "-"

_WEIGHTED = re.compile(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)


class NamedText(NamedTuple):
    """One text that is asked for."""

    name: str
    weight: float
    """Its share of the tokens is this over the sum of all weights."""


def named_texts(texts: Texts) -> tuple[NamedText, ...]:
    """Names and weights: wiki.txt:2 is the text wiki.txt with weight 2; without a colon, 1.

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
    match = _WEIGHTED.fullmatch(text)
    if match is None or exists(Path(text).expanduser()):
        return NamedText(text, 1.0)
    name, weight = match[1], float(match[2])
    if not (weight > 0 and math.isfinite(weight)):
        raise SettingsError(
            f"--text {text}: the weight behind the colon is a share, a number above 0 such as 2"
        )
    return NamedText(name, weight)
