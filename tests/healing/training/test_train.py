import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.healing.losses.objective import Objective
from depthcut.healing.rows import Rows
from depthcut.healing.training.checkpoints import kept_checkpoints
from depthcut.healing.training.lessons import Lesson, Pace
from depthcut.healing.training.train import Training, seeded, train
from depthcut.healing.weights.adapters import adapted
from depthcut.model.loading import from_memory
from depthcut.settings import HealSettings
from tests.tiny import build_tiny

SETTINGS = HealSettings(steps=8, batch_size=4, rank=4, learning_rate=5e-3, warmup_steps=2)


def counting(length: int, count: int) -> list[Tensor]:
    """Sequences that are easy to learn: each token is the one before plus one."""
    return [torch.arange(start, start + length) % 200 for start in range(count)]


class Healing(NamedTuple):
    training: Training
    weights: dict[str, Tensor]


def healed(
    settings: HealSettings,
    sequences: list[Tensor],
    folder: Path,
    *,
    held_out: list[Tensor] | None = None,
    micro: int | None = None,
    recompute: bool = False,
) -> Healing:
    loaded = from_memory(build_tiny("llama"), None)
    lesson = Lesson(
        Rows(tuple(sequences), tuple(held_out or ())), Objective({"next-token": 1.0}), settings
    )
    size = micro or settings.batch_size
    with (
        kept_checkpoints(folder / "out", "inputs") as checkpoints,
        seeded(settings.seed),
        adapted(loaded, settings, None) as wrapped,
    ):
        training = train(
            wrapped,
            lesson,
            Pace(size, settings.batch_size // size, recompute),
            loaded=loaded,
            autocast=torch.float32,
            checkpoints=checkpoints,
        )
        weights = {
            name: weight.detach().clone()
            for name, weight in wrapped.named_parameters()
            if weight.requires_grad
        }
    return Healing(training, weights)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    training, _ = healed(SETTINGS, counting(24, 40), tmp_path)
    assert [step for step, _ in training.losses] == list(range(1, 9))
    assert training.losses[-1][1] < training.losses[0][1] - 0.3


def test_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path) -> None:
    first = healed(SETTINGS, counting(24, 40), tmp_path)
    again = healed(SETTINGS, counting(24, 40), tmp_path)
    other = healed(replace(SETTINGS, seed=1), counting(24, 40), tmp_path)
    assert first.training.losses == again.training.losses
    assert all(first.weights[name].equal(again.weights[name]) for name in first.weights)
    assert first.training.losses != other.training.losses


def test_sequences_are_repeated_until_the_steps_are_done(tmp_path: Path) -> None:
    assert len(healed(SETTINGS, counting(24, 3), tmp_path).training.losses) == 8


def test_tokens_without_padding_are_counted(tmp_path: Path) -> None:
    sequences = [torch.arange(length) for length in (5, 30, 9, 16)]
    training, _ = healed(replace(SETTINGS, steps=2), sequences, tmp_path)
    assert training.tokens == 2 * (5 + 30 + 9 + 16)


def test_loss_of_a_step_is_the_mean_over_its_tokens_however_they_are_padded(
    tmp_path: Path,
) -> None:
    sequences = [torch.arange(length) for length in (5, 30, 9, 16)]
    model = build_tiny("llama").double()
    with torch.no_grad():
        losses = [
            nn.functional.cross_entropy(
                model(input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="sum"
            )
            for ids in sequences
        ]
    expected = sum(losses).item() / sum(len(ids) - 1 for ids in sequences)  # type: ignore[union-attr]  # a tensor
    weights = []
    for micro in (4, 2, 1):
        found = healed(replace(SETTINGS, steps=1), sequences, tmp_path, micro=micro)
        assert found.training.losses[0][1] == pytest.approx(expected, rel=1e-5)
        weights.append(found.weights)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[2][name], rtol=1e-4, atol=1e-5)


def test_recomputed_activations_give_the_same_training(tmp_path: Path) -> None:
    results = [
        healed(SETTINGS, counting(24, 9), tmp_path, recompute=recompute).training.losses
        for recompute in (False, True)
    ]
    assert dict(results[0]) == pytest.approx(dict(results[1]))


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="lower --learning-rate"):
        healed(replace(SETTINGS, learning_rate=1e30), counting(24, 9), tmp_path)


def test_nothing_is_left_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    healed(SETTINGS, counting(24, 9), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_long_trainings_keep_a_hundred_losses_at_most(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=150, batch_size=1)
    training, _ = healed(settings, counting(4, 9), tmp_path)
    assert len(training.losses) == 75
    assert training.losses[-1][0] == 150


def test_the_weights_that_did_best_on_what_is_held_out_are_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=30, eval_every=5, learning_rate=0.01, schedule="constant")
    # What is held out counts down: the more is learned of counting up, the worse.
    down = [ids.flip(0) for ids in counting(24, 4)]
    training, weights = healed(settings, counting(24, 40), tmp_path, held_out=down)
    assert [each.step for each in training.judgements] == [0, 5, 10, 15, 20, 25, 30]
    least = min(training.judgements[1:], key=lambda each: each.loss)
    assert training.best_step == least.step < 30
    assert least.loss == least.next_token
    short = healed(replace(settings, steps=least.step), counting(24, 40), tmp_path)
    for name, weight in weights.items():
        assert weight.equal(short.weights[name])


def test_training_stops_when_judgements_no_longer_get_better(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, steps=60, eval_every=2, learning_rate=0.01, schedule="constant", patience=2
    )
    down = [ids.flip(0) for ids in counting(24, 4)]
    training, _ = healed(settings, counting(24, 40), tmp_path, held_out=down)
    assert training.stopped_early
    assert training.judgements[-1].step == training.best_step + 4


def test_seeding_leaves_the_callers_random_numbers_alone() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(1).item(), random.random(), np.random.rand()

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = [draw(), draw()]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    found = [draw()]
    with seeded(3):
        inside = draw()
    found.append(draw())
    assert found == expected
    with seeded(3):
        assert draw() == inside
