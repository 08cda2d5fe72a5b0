"""Benchmarks as tables for a terminal."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from depthcut.records import TaskResults
from depthcut.reporting.benchmarks.scores import MARKS_SAID, Cell, average_lines, task_lines
from depthcut.reporting.benchmarks.story import chances

MODELS = 3
"""Of those after the first, as fit a terminal beside it."""


def benchmark_tables(results: TaskResults, models: Sequence[str]) -> RenderableType:
    """Tasks down, models across: score ± error, and the paired difference to the first below."""
    first, others = models[0], models[1:]
    head = f"{escape(results.harness)}: scores in % where they are shares, ± one standard error"
    if others:
        head += (
            f"; below, the difference to {escape(first)} on the same questions and its paired error"
        )
    parts: list[RenderableType] = [head]
    for start in range(0, max(1, len(others)), MODELS):
        parts.append(_table(results, [first, *others[start : start + MODELS]]))
    if others:
        parts.append(" ".join(filter(None, (f"{MARKS_SAID}.", chances(results)))))
    return Group(*parts)


def _table(results: TaskResults, models: Sequence[str]) -> Table:
    table = Table("task", "chance")
    for model in models:
        table.add_column(escape(model), justify="right", overflow="fold")
    lines = task_lines(results, models, results.chief)
    for number, line in enumerate(lines, start=1):
        name = f"{escape(line.name)}\n[dim]{line.items}[/dim]"
        cells = map(_shown, line.cells)
        table.add_row(name, line.chance, *cells, end_section=number == len(lines))
    for line in average_lines(results, models):
        table.add_row(escape(line.name), line.chance, *map(_shown, line.cells))
    return table


def _shown(cell: Cell) -> str:
    if not cell.difference:
        return cell.score
    below = f"{cell.difference} {cell.mark}"
    colours = {"worse": "red", "better": "green", "same": "dim", "open": "dim"}
    colour = colours[cell.kind or "open"]
    return f"{cell.score}\n[{colour}]{below}[/{colour}]"
