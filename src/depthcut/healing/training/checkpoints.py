"""Where a training keeps how far it is, so that the same command goes on after a kill."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from depthcut.errors import OutputError
from depthcut.files import discard, remove_abandoned, sole_writer, sync_tree, write_file
from depthcut.model.ranks import ALONE, Ranks

_WHOLE = "whole"
"""Lies in a checkpoint once all of it is on the disk."""
_BEGUN = "inputs.json"


class Begun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a training was begun with, and goes on with."""

    inputs: str
    """Digest of everything that it depends on."""
    micro_batch_size: int | None = None
    """What was chosen for it: another one rounds otherwise."""
    recompute: bool = False
    processes: int = 1
    sharded: bool = False
    """Whether they share the model out: its optimizer is kept otherwise."""
    starts: int = 1
    """How often it was started."""


@dataclass
class Checkpoints:
    """The folder of a training under way. Only whole checkpoints count."""

    folder: Path
    begun: Begun
    given_up: bool = False

    def give_up(self) -> None:
        """Nothing can go on from here: with the same settings it would end the same way."""
        self.given_up = True

    def last(self) -> Path | None:
        """The newest checkpoint; None: none yet."""
        steps = self._steps()
        return self.at(max(steps)) if steps else None

    def at(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def finish(self, step: int, *, best: int | None) -> None:
        """Call a checkpoint whole, and drop the others but the best one."""
        sync_tree(self.at(step))
        write_file(self.at(step) / _WHOLE, b"", overwrite=True)
        for other in self._steps() - {step, best}:
            discard(self.at(other))

    def note(self, begun: Begun) -> None:
        """Keep what the training goes on with."""
        self.begun = begun
        write_file(self.folder / _BEGUN, msgspec.json.encode(begun), overwrite=True)

    def _steps(self) -> set[int]:
        return {
            int(path.name.rpartition("-")[2])
            for path in self.folder.glob("checkpoint-*")
            if (path / _WHOLE).exists()
        }


@contextlib.contextmanager
def kept_checkpoints(
    out: Path, inputs: str, ranks: Ranks = ALONE, *, sharded: bool = False
) -> Iterator[Checkpoints]:
    """A context with the folder `<out>.training`, which is gone when all went well.

    Of several processes the first one keeps the folder.

    Raises:
        OutputError: A training lies there that was begun with other settings, another process is
            at it, or the place cannot be written.
    """
    folder = training_folder(out)
    if ranks.rank:
        yield Checkpoints(folder, ranks.of_first(Begun(inputs)))
        return
    with sole_writer(folder):
        remove_abandoned(folder)
        checkpoints = Checkpoints(
            folder, _read(folder, Begun(inputs, processes=ranks.count, sharded=sharded))
        )
        for path in folder.glob("checkpoint-*"):
            if not (path / _WHOLE).exists():
                shutil.rmtree(path)
        checkpoints.note(ranks.of_first(checkpoints.begun))
        try:
            yield checkpoints
        except BaseException:
            if checkpoints.last() is None or checkpoints.given_up:
                discard(folder)
            raise
        discard(folder)


def training_folder(out: Path) -> Path:
    """Where the checkpoints of a training are that shall become `out`."""
    return out.with_name(f"{out.name}.training")


def discard_other_training(out: Path, inputs: str) -> None:
    """Remove the checkpoints of a killed training that was to become `out` from other inputs."""
    folder = training_folder(out)
    if folder.exists():
        with contextlib.suppress(OSError, msgspec.DecodeError):
            begun = msgspec.json.decode((folder / _BEGUN).read_bytes(), type=Begun)
            if begun.inputs != inputs:
                discard(folder)


def _read(folder: Path, now: Begun) -> Begun:
    path = folder / _BEGUN
    if not path.exists():
        if any(not each.name.startswith(f".{_BEGUN}") for each in folder.iterdir()):
            raise OutputError(
                f"{folder} is no training of depthcut: choose another --out, or remove it"
            )
        return now
    try:
        begun = msgspec.json.decode(path.read_bytes(), type=Begun)
    except (OSError, msgspec.DecodeError) as error:
        raise OutputError(
            f"{path} cannot be read ({error}): remove {folder}, or choose another --out"
        ) from error
    if begun.inputs != now.inputs:
        raise OutputError(
            f"{folder} was begun with other settings, another model, teacher or text: repeat that "
            "command to go on, choose another --out, or remove the folder"
        )
    if (begun.processes, begun.sharded) != (now.processes, now.sharded):
        raise OutputError(
            f"{folder} was begun by {_processes(begun)} and these are {_processes(now)}: start "
            "them the same way, choose another --out, or remove the folder"
        )
    return msgspec.structs.replace(begun, starts=begun.starts + 1)


def _processes(begun: Begun) -> str:
    return f"{begun.processes} processes" + " that share a model out (FSDP)" * begun.sharded
