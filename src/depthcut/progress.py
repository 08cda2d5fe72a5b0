"""Progress on stderr: rate, time left and a note (the best block so far, the loss)."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from depthcut.launched import launched


class Advance(Protocol):
    """Reports `amount` more units done; `note` replaces the text at the end of the line."""

    def __call__(self, amount: float, note: str = "") -> None: ...


@contextlib.contextmanager
def progress(title: str, total: float | None, *, unit: str = "tokens") -> Iterator[Advance]:
    """A progress bar on stderr; on a stderr that is no terminal one line when it is done.

    A `total` of None means that nobody knows. Of several processes the first one shows its part.
    """
    if launched().rank:
        yield lambda amount, note="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: RichTask) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("" if total is None else "{task.percentage:>3.0f} %"),
        Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", style="dim"),
    ]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(amount: float, note: str = "") -> None:
            bar.advance(task, amount)
            if note:
                bar.update(task, note=note)

        yield advance
