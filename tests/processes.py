"""Several processes on this machine, as a launcher starts them: each told which one it is."""

import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from depthcut.cli import main

# One process imports everything, once, and is copied for each that is asked for.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "tests.processes",
        "accelerate",
        "depthcut.searching.search",
        "depthcut.surveying.survey",
        "transformers.models.llama.modeling_llama",
    ]
)


class Ended(NamedTuple):
    """What a process left."""

    code: int | None
    output: str
    messages: str


def together(
    arguments: Sequence[str],
    count: int,
    *,
    second: Sequence[str] | None = None,
    before: Callable[[], None] | None = None,
    first: Callable[[], None] | None = None,
    seconds: float = 120,
) -> list[Ended]:
    """Run `depthcut ARGUMENTS` in `count` processes; when one fails, the others are ended.

    Args:
        second: The arguments of the second process, where they differ.
        before: What the last process does first; a function of a module.
        first: What each of them does first; a function of a module.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for rank in range(count):
            place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank}
            place |= {"LOCAL_WORLD_SIZE": count, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
            environment = {name: str(value) for name, value in place.items()}
            environment["MASTER_ADDR"] = "127.0.0.1"
            own = second if second is not None and rank == 1 else arguments
            last = before if rank == count - 1 else None
            steps = [each for each in (first, last) if each is not None]
            process = CONTEXT.Process(
                target=_run, args=(list(own), environment, Path(folder, str(rank)), steps)
            )
            process.start()
            running.append(process)
        _wait(running, seconds)
        return [
            Ended(each.exitcode, *(Path(folder, f"{rank}.{name}").read_text() for name in "oe"))
            for rank, each in enumerate(running)
        ]


def _run(
    arguments: list[str], environment: dict[str, str], to: Path, steps: list[Callable[[], None]]
) -> None:
    for stream, name in ((1, "o"), (2, "e")):
        file = os.open(f"{to}.{name}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(file, stream)
    os.environ |= environment
    for step in steps:
        step()
    main(arguments)


def _wait(running: list[BaseProcess], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while any(each.exitcode is None for each in running):
        if any(each.exitcode for each in running) or time.monotonic() > limit:
            for each in running:
                each.terminate()
        time.sleep(0.05)
