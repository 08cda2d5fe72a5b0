"""What one model answered: every item of the tasks that one name of --tasks stands for."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from depthcut.records import Record, Task


class Item(Record, frozen=True, kw_only=True):
    """One question and its answer."""

    number: int
    """In the task, from 0."""
    question: str
    right: str
    answer: str
    scores: dict[str, float]
    """By metric; of a metric that is a mean over words or bytes, the mean of this item."""
    weights: dict[str, float]
    """Words or bytes of this item, for such a metric."""


class Metric(Record, frozen=True, kw_only=True):
    """A metric of a whole task, as lm-eval counts it."""

    name: str
    value: float
    stderr: float | None


class Answers(Record, frozen=True, kw_only=True):
    """One task, or a group of tasks (which has no items of its own)."""

    task: Task
    metrics: tuple[Metric, ...]
    items: tuple[Item, ...]


class Unit(Record, frozen=True, kw_only=True):
    """All that one name of --tasks came to for one model."""

    harness: str
    answers: tuple[Answers, ...]
    """Groups before the tasks in them."""
    files: dict[str, str]
    """Local files that were read, with their SHA-256."""
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the files still say what was read."""
        return self.files == digests(self.files)


def digests(paths: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files; empty where one cannot be read."""
    found = {}
    for path in paths:
        try:
            found[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError:
            found[path] = ""
    return found
