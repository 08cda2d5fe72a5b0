import pytest
import torch

from depthcut.errors import SettingsError
from depthcut.healing.losses.objective import Objective
from depthcut.healing.losses.teaching import objective_of
from depthcut.healing.rows import Rows
from depthcut.model.loading import from_memory
from depthcut.settings import HealSettings, LoadSettings
from tests.every_type import build
from tests.tiny import build_tiny


def test_the_balance_of_experts_is_the_models_own_for_each_token() -> None:
    model = build_tiny("mixtral").train()
    ids = torch.arange(24).view(2, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    own = model(input_ids=ids, attention_mask=batch["attention_mask"], output_router_logits=True)
    plain = Objective({"next-token": 1.0}).of(model, batch)
    mixed = Objective({"next-token": 1.0, "balance": 0.5}).of(model, batch)
    assert own.aux_loss > 0
    assert (mixed - plain).item() == pytest.approx(0.5 * 22 * own.aux_loss.item(), rel=1e-4)
    mixed.backward()


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_without_experts_has_none_to_balance(model_type: str) -> None:
    loaded = from_memory(build_tiny(model_type), None)
    rows = Rows((torch.arange(8),), (), ())
    settings = HealSettings(loss="next-token,balance:0.01")
    with pytest.raises(SettingsError, match=r"--loss balance: .* leave it out"):
        objective_of(loaded, None, rows, settings, load=LoadSettings(), plan=None)


def test_experts_that_are_balanced_by_no_loss_are_told() -> None:
    ids = torch.arange(24).view(2, 12)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    with pytest.raises(SettingsError, match=r"--loss balance: .* leave it out"):
        Objective({"balance": 1.0}).of(build("deepseek_v3"), batch)
