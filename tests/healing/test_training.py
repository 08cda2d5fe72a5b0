import random
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.healing.adapters import adapted
from depthcut.healing.training import Training, seeded, train
from depthcut.settings import HealSettings
from tests.tiny import build_tiny

CPU = torch.device("cpu")
SETTINGS = HealSettings(
    steps=8, batch_size=2, accumulate=2, rank=4, learning_rate=5e-3, warmup_steps=2
)


def counting(length: int, count: int) -> list[Tensor]:
    """Sequences that are easy to learn: each token is the one before plus one."""
    return [torch.arange(start, start + length) % 200 for start in range(count)]


def healed(settings: HealSettings, sequences: list[Tensor]) -> tuple[Training, dict[str, Tensor]]:
    model = build_tiny("llama")
    with seeded(settings.seed), adapted(model, settings) as wrapped:
        training = train(wrapped, sequences, settings, device=CPU)
        state = {
            name: weight.detach().clone()
            for name, weight in wrapped.named_parameters()
            if weight.requires_grad
        }
    return training, state


def test_training_lowers_the_loss() -> None:
    training, _ = healed(SETTINGS, counting(24, 40))
    assert [step for step, _ in training.losses] == list(range(1, 9))
    assert training.losses[-1][1] < training.losses[0][1] - 0.3


def test_same_seed_gives_the_same_weights_and_another_does_not() -> None:
    first = healed(SETTINGS, counting(24, 40))
    again = healed(SETTINGS, counting(24, 40))
    other = healed(replace(SETTINGS, seed=1), counting(24, 40))
    assert first[0] == again[0]
    assert all(first[1][name].equal(again[1][name]) for name in first[1])
    assert first[0] != other[0]


def test_sequences_are_repeated_until_the_steps_are_done() -> None:
    training, _ = healed(SETTINGS, counting(24, 3))
    assert len(training.losses) == 8


def test_tokens_without_padding_are_counted() -> None:
    sequences = [torch.arange(length) for length in (5, 30, 9, 16)]
    training, _ = healed(replace(SETTINGS, steps=2), sequences)
    assert training.tokens == 2 * (5 + 30 + 9 + 16)


def test_loss_of_a_step_is_the_mean_over_its_tokens_however_they_are_padded() -> None:
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
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        changes = {"steps": 1, "batch_size": batch_size, "accumulate": accumulate}
        training, _ = healed(replace(SETTINGS, **changes), sequences)
        assert training.losses[0][1] == pytest.approx(expected, rel=1e-5)


def test_recomputed_activations_give_the_same_training() -> None:
    results = []
    for recompute in (False, True):
        model = build_tiny("llama")
        with seeded(0), adapted(model, SETTINGS) as wrapped:
            training = train(
                wrapped, counting(24, 9), SETTINGS, device=CPU, checkpoint_activations=recompute
            )
            results.append(training)
        assert not any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())
    assert dict(results[0].losses) == pytest.approx(dict(results[1].losses))


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    with pytest.raises(SettingsError, match="lower --learning-rate"):
        healed(replace(SETTINGS, learning_rate=1e30), counting(24, 9))


def test_nothing_is_left_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    healed(SETTINGS, counting(24, 9))
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""


def test_long_trainings_keep_a_hundred_losses_at_most() -> None:
    settings = replace(SETTINGS, steps=150, accumulate=1, batch_size=1)
    training, _ = healed(settings, counting(4, 9))
    assert len(training.losses) == 75
    assert training.losses[-1][0] == 150


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
