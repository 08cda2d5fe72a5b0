import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from depthcut.errors import OutputError, SettingsError
from depthcut.files import discard
from depthcut.healing import heal
from depthcut.healing.losses.objective import Objective
from depthcut.healing.training.checkpoints import Checkpoints, kept_checkpoints
from depthcut.model.loading import load
from depthcut.records import HealRecord, TextFacts
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import Sequences
from tests.processes import CONTEXT
from tests.tiny import build_tiny, save_tiny

LOAD = LoadSettings(device="cpu")
SETTINGS = HealSettings(
    steps=8, batch_size=2, rank=2, dropout=0.2, eval_every=3, save_every=2, held_out_tokens=48
)


class Killed(BaseException):
    """Nobody catches it."""


def counting() -> Sequences:
    ids = tuple(torch.arange(start, start + 24) % 200 for start in range(40))
    facts = TextFacts(source="counting", digest="text", sequences=40, tokens=24 * 40)
    return Sequences(facts, ids, (23,) * 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(build_tiny("llama"), tmp_path_factory.mktemp("tiny") / "base")


def healed(folder: Path, out: Path, settings: HealSettings = SETTINGS) -> HealRecord:
    return heal.heal_checkpoint(load(folder, LOAD), counting(), settings, LOAD, out)


@pytest.fixture(scope="module")
def uninterrupted(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HealRecord, bytes]:
    out = tmp_path_factory.mktemp("whole") / "healed"
    record = healed(folder, out)
    return record, (out / "model.safetensors").read_bytes()


def failing(function: Callable[..., Any], after: int, fail: Callable[[], None]) -> Any:
    """The function, which fails at a later call."""
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            fail()
        return function(*args, **kwargs)

    return called


def kill() -> None:
    raise Killed


POINTS = {
    "before the first checkpoint": (Objective, "of", 2),  # the first is the rehearsal
    "in a step between two": (Objective, "of", 6),
    "in a judgement": (Objective, "judged", 2),
    "while a checkpoint is saved": (Checkpoints, "finish", 2),
    "while the result is written": (heal, "copy_base", 0),
}


@pytest.mark.parametrize("point", list(POINTS))
def test_a_killed_training_goes_on_to_the_same_losses_and_weights(
    point: str,
    folder: Path,
    tmp_path: Path,
    uninterrupted: tuple[HealRecord, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner, name, after = POINTS[point]
    out = tmp_path / "healed"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, failing(getattr(owner, name), after, kill))
        with pytest.raises(Killed):
            healed(folder, out)
    assert not out.exists()
    record = healed(folder, out)
    expected, weights = uninterrupted
    assert record.losses == expected.losses
    assert record.judgements == expected.judgements
    assert (record.best_step, record.trained_tokens) == (expected.best_step, 8 * 2 * 24)
    assert (out / "model.safetensors").read_bytes() == weights
    assert record.starts == (1 if "first" in point else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["healed"]


def test_a_training_that_stopped_early_does_not_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, steps=30, learning_rate=1e-9, eval_every=1, patience=2, dropout=0)
    out = tmp_path / "healed"
    with monkeypatch.context() as patched:
        patched.setattr(heal, "copy_base", failing(heal.copy_base, 0, kill))
        with pytest.raises(Killed):
            healed(folder, out, settings)
    monkeypatch.setattr(Objective, "of", failing(Objective.of, 1, kill))  # only the rehearsal
    record = healed(folder, out, settings)
    assert record.stopped_early
    assert record.losses[-1][0] == record.best_step + 2 < 30


def _heal_until_killed(folder: Path, out: Path) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Objective.of = failing(Objective.of, 6, die)  # type: ignore[method-assign]
    healed(folder, out)


@pytest.mark.slow
def test_kill_9_loses_the_steps_since_the_last_checkpoint_alone(
    folder: Path, tmp_path: Path, uninterrupted: tuple[HealRecord, bytes]
) -> None:
    out = tmp_path / "healed"
    process = CONTEXT.Process(target=_heal_until_killed, args=(folder, out))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "healed.training" / "checkpoint-4" / "whole").exists()
    record = healed(folder, out)
    assert record.losses == uninterrupted[0].losses
    assert (out / "model.safetensors").read_bytes() == uninterrupted[1]
    assert not (tmp_path / "healed.training").exists()


def test_a_healing_killed_while_it_tidies_up_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "healed"

    def killed(path: Path) -> None:
        if path.name == "healed.training":
            kill()
        discard(path)

    with monkeypatch.context() as patched:
        patched.setattr("depthcut.healing.training.checkpoints.discard", killed)
        with pytest.raises(Killed):
            healed(folder, out)
    assert out.exists()
    assert (tmp_path / "healed.training").exists()
    monkeypatch.setattr(heal, "train", failing(heal.train, 0, kill))
    assert healed(folder, out).starts == 1
    assert [path.name for path in tmp_path.iterdir()] == ["healed"]


def test_a_training_waits_for_memory_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "healed"
    with monkeypatch.context() as patched:
        patched.setattr(Objective, "of", failing(Objective.of, 6, kill))
        with pytest.raises(Killed):
            healed(folder, out)
    with monkeypatch.context() as patched:
        patched.setattr("depthcut.healing.training.rehearsal.free_memory_bytes", lambda _: 0)
        with pytest.raises(SettingsError, match="choose --method lora"):
            healed(folder, out)
    assert healed(folder, out).losses[-1][0] == 8


def test_other_settings_do_not_go_on_with_a_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "healed"
    with monkeypatch.context() as patched:
        patched.setattr(heal, "copy_base", failing(heal.copy_base, 0, kill))
        with pytest.raises(Killed):
            healed(folder, out)
    with pytest.raises(OutputError, match="begun with other settings"):
        healed(folder, out, replace(SETTINGS, learning_rate=1e-4))
    assert healed(folder, out, replace(SETTINGS, save_every=5, report_to="none")).starts == 2


def test_no_more_than_minutes_of_work_are_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("depthcut.healing.training.watching._MOST_LOST_SECONDS", 0)
    saved = []
    finish = Checkpoints.finish
    monkeypatch.setattr(
        Checkpoints,
        "finish",
        lambda self, step, *, best: (saved.append(step), finish(self, step, best=best)),
    )
    settings = replace(SETTINGS, held_out_tokens=0, save_every=100)
    healed(folder, tmp_path / "healed", settings)
    assert saved == list(range(1, 9))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "healed.training"
    place.mkdir()
    (place / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(OutputError, match="no training of depthcut"),
        kept_checkpoints(tmp_path / "healed", "inputs"),
    ):
        pass
    assert (place / "thesis.tex").read_text() == "years of work"


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    with (
        kept_checkpoints(tmp_path / "healed", "inputs"),
        pytest.raises(OutputError, match="another depthcut run"),
        kept_checkpoints(tmp_path / "healed", "inputs"),
    ):
        pass
