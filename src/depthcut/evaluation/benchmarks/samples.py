"""Every item of every task with what each model answered, as lines of JSON, compressed."""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from depthcut.evaluation.benchmarks.answers import Item, Unit
from depthcut.files import write_file


class Given(msgspec.Struct, frozen=True):
    """What one model answered."""

    answer: str
    scores: dict[str, float]


class Sample(msgspec.Struct, frozen=True):
    """One line of the file."""

    task: str
    item: int
    question: str
    right: str
    models: dict[str, Given]


def samples_file(record: Path) -> Path:
    """Where the items of a record lie: beside it."""
    return record.with_name(f"{record.stem}.samples.jsonl.gz")


def write_samples(units: Mapping[str, Sequence[Unit]], path: Path) -> None:
    """Write all items, one a line, the models side by side, in place of those of an earlier time.

    Raises:
        OutputError: The place cannot be written.
    """
    lines = msgspec.json.Encoder().encode_lines(list(_samples(units)))
    write_file(path, gzip.compress(lines, compresslevel=6, mtime=0), overwrite=True)


def _samples(units: Mapping[str, Sequence[Unit]]) -> Iterator[Sample]:
    names = list(units)
    for of_models in zip(*units.values(), strict=True):
        for parts in zip(*(unit.answers for unit in of_models), strict=True):
            for items in zip(*(part.items for part in parts), strict=True):
                yield _sample(parts[0].task.name, dict(zip(names, items, strict=True)))


def _sample(task: str, items: Mapping[str, Item]) -> Sample:
    first = next(iter(items.values()))
    return Sample(
        task,
        first.number,
        first.question,
        first.right,
        {name: Given(each.answer, each.scores) for name, each in items.items()},
    )
