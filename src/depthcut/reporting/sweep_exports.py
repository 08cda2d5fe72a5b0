"""A sweep as files: every number as CSV, tables for a paper or an issue as Markdown."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence

from depthcut.records import SWEEP_COLUMNS, JudgedText, Sweep
from depthcut.reporting.sweep_tables import (
    STANDING_COLUMNS,
    Cell,
    cells_by_way,
    standing_rows,
    taken,
)
from depthcut.reporting.words import estimate

_EXPLAINED = (
    "Behind the best: how much more log-perplexity than the best way at the same number of layers "
    "on the same text, in the mean and at most. Tied: the paired difference to the best is below "
    "two standard errors. Forward passes are of the whole model over the text that the way chose "
    "by."
)


def sweep_csv(sweep: Sweep) -> str:
    """A row for each text, way and number of removed layers; unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SWEEP_COLUMNS)
    writer.writerows(sweep.rows())
    return text.getvalue()


def sweep_markdown(sweep: Sweep) -> str:
    """How the ways stand, what each says on each text, and what each takes."""
    lines = [
        f"# Ways of choosing layers of {sweep.model.source}",
        "",
        f"{sweep.model.layers} layers; chosen on {sweep.calibration}.",
        "",
        *_table(STANDING_COLUMNS, standing_rows(sweep)),
        "",
        _EXPLAINED,
    ]
    for judged in sweep.judged:
        lines += _text(sweep, judged)
    layers = [(way.name, *(taken(way, count) for count in sweep.counts)) for way in sweep.ways]
    lines += ["", "## What each way takes", "", *_table(_by_count(sweep), layers)]
    return "\n".join(lines) + "\n"


def _text(sweep: Sweep, judged: JudgedText) -> Iterator[str]:
    by_way = cells_by_way(sweep, judged)
    yield from ("", f"## {judged.name}", "")
    yield (
        f"{judged.text.tokens:,} tokens, {judged.text.sequences:,} sequences; untouched: "
        f"perplexity {estimate(judged.untouched.perplexity)}. **Bold**: the best of its column; "
        "*italic*: tied with it."
    )
    for title, shown in _TABLES.items():
        yield from ("", f"{title}, by number of removed layers:", "")
        rows = [(name, *map(shown, cells)) for name, cells in by_way.items()]
        yield from _table(_by_count(sweep), rows)


def _by_count(sweep: Sweep) -> tuple[str, ...]:
    return ("way", *map(str, sweep.counts))


def _perplexity(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    mark = "**" if cell.best else "*" if cell.tied else ""
    return f"{mark}{estimate(cell.said.perplexity)}{mark}"


def _lost(cell: Cell | None) -> str:
    return "–" if cell is None else estimate(cell.said.loss_difference, sign=True)


def _divergence(cell: Cell | None) -> str:
    return "–" if cell is None else estimate(cell.said.kl_divergence)


_TABLES = {
    "Perplexity": _perplexity,
    "Log-perplexity lost, nats, ± paired with the untouched model": _lost,
    "KL divergence from the untouched model, nats": _divergence,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
