"""What sequences say by one criterion, a row each, to the scores of a survey."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from depthcut.records import Scores
from depthcut.settings import Tokens
from depthcut.surveying.criteria import CRITERIA

Rows = dict[tuple[str, Tokens], list[Tensor]]
"""By criterion and tokens: for each sequence that scored, its (entries,) float64, on the CPU."""


def scores_of(name: str, tokens: Tokens, rows: Sequence[Tensor], widths: Sequence[int]) -> Scores:
    """Mean over rows, and its standard error (0 where there is one row only).

    Args:
        name: The criterion.
        tokens: Where it was taken.
        rows: Its entries in reading order, sequence by sequence.
        widths: Entries for each start, see `row_widths`.
    """
    values, criterion = torch.stack(list(rows)), CRITERIA[name]
    count = len(values)
    error = values.std(dim=0) / math.sqrt(count) if count > 1 else torch.zeros(1)
    return Scores(
        criterion=name,
        tokens=tokens,
        scope=criterion.scope,
        paper=criterion.paper,
        meaning=criterion.meaning,
        mean=in_rows(values.mean(dim=0).tolist(), widths),
        stderr=in_rows(error.expand(values.shape[1]).tolist(), widths),
        per_sequence=little_endian(values),
    )


def in_rows(entries: Sequence[float], widths: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Entries in reading order as rows by start."""
    rows, at = [], 0
    for width in widths:
        rows.append(tuple(entries[at : at + width]))
        at += width
    return tuple(rows)


def little_endian(values: Tensor) -> bytes:
    """As float32, little endian, row by row."""
    return values.float().contiguous().numpy().astype("<f4").tobytes()
