"""Everything depthcut raises on purpose.

    DepthcutError
    ├── SettingsError       an option, recipe key or combination that cannot be meant
    ├── RecordError         a survey, plan or evaluation file that cannot be read
    ├── SourceError         a model or text that cannot be found or fetched
    ├── TextError           a text that was found but holds nothing usable
    ├── CheckpointError     a checkpoint folder that is broken, lying or unsafe
    ├── ArchitectureError   a model type, or a cut of it, that depthcut cannot express
    ├── PlanError           layers that cannot be removed, or a plan for another model
    ├── OutputError         a place that cannot be written: exists, full, forbidden
    ├── RanksError          one of several processes that cannot go on with the others
    └── MissingExtraError   an optional package that the request needs

A message says what was expected, what was found, where, and what to do. The command
line prints it as one line and exits 2; anything else that escapes is a bug in depthcut.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class DepthcutError(Exception):
    """Base of all errors that depthcut raises on purpose."""


class SettingsError(DepthcutError, ValueError):
    """An option, recipe key or combination of them that cannot be meant."""


class RecordError(DepthcutError, ValueError):
    """A survey, plan, evaluation or recipe file that cannot be read."""


class SourceError(DepthcutError, OSError):
    """A model or text that cannot be found or fetched."""


class TextError(DepthcutError, ValueError):
    """A text that was found but holds nothing usable."""


class CheckpointError(DepthcutError, ValueError):
    """A checkpoint folder that is broken, lying or unsafe."""


class ArchitectureError(DepthcutError, ValueError):
    """A model type, or a cut of it, that depthcut cannot express."""


class PlanError(DepthcutError, ValueError):
    """Layers that cannot be removed, or a plan made for another model."""


class OutputError(DepthcutError, OSError):
    """A place that cannot be written: it exists already, is full or is forbidden."""


class RanksError(DepthcutError, RuntimeError):
    """One of several processes that measure together cannot go on: another ended, or differs."""


class MissingExtraError(DepthcutError, ImportError):
    """An optional package that the request needs is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'depthcut[{extra}]'")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean X?)' for the closest of the known names, or ''."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]}?)" if matches else ""


def short(value: object) -> str:
    """A value for a message in eighty characters: of a longer one (a path) both ends."""
    try:
        text = repr(value)
    except RecursionError:
        return "lists in lists"
    return text if len(text) <= 80 else f"{text[:30]}...{text[-47:]}"
