from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from depthcut.healing.heal import heal_checkpoint
from depthcut.healing.training import rehearsal
from depthcut.healing.training.train import seeded
from depthcut.healing.weights.adapters import adapted
from depthcut.model.loading import LoadedModel, load
from depthcut.presets import heal_preset
from depthcut.records import TextFacts
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import Sequences
from tests.tiny import build_tiny, save_tiny

pytest.importorskip("bitsandbytes")
FOUR = LoadSettings(device="cpu", load_in_4bit=True)


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    model = build_tiny("llama", layers=2, hidden_size=64, head_dim=16).bfloat16()
    return load(save_tiny(model, tmp_path / "base"), FOUR)


def gradients(loaded: LoadedModel, judged: bool, settings: HealSettings) -> list[Tensor]:
    ids = torch.arange(24)[None]
    with seeded(0), adapted(loaded, settings, None) as wrapped:
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
        if judged:
            wrapped.eval()
            with torch.no_grad():
                wrapped(input_ids=ids)
        wrapped.train()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        return [p.grad.clone() for p in wrapped.parameters() if p.grad is not None]


def test_gradients_flow_through_a_4_bit_base_after_it_was_judged(loaded: LoadedModel) -> None:
    # bitsandbytes packs weights at the first pass in eval mode, and then knows no gradient.
    settings = replace(HealSettings(), rank=2)
    first = gradients(loaded, False, settings)
    later = gradients(loaded, True, settings)
    assert len(first) == len(later) == 2 * 7 * 2
    for one, other in zip(first, later, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


def test_a_preset_for_a_gpu_says_on_a_cpu_what_works_instead(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_LONG_SECONDS", 0)
    told: list[str] = []
    ids = tuple(torch.arange(start, start + 24) for start in range(20))
    facts = TextFacts(source="counting", digest="text", sequences=20, tokens=480)
    settings = heal_preset("gromov", steps=1, batch_size=2, context=24, rank=2)
    text = Sequences(facts, ids, (23,) * 20)
    heal_checkpoint(loaded, text, settings, FOUR, tmp_path / "healed", announce=told.append)
    assert "--method lora trains the same matrices faster" in "\n".join(told)
    assert "--preset quick" in told[-1]


def test_a_base_that_was_judged_before_trains_too(loaded: LoadedModel) -> None:
    settings = replace(HealSettings(), rank=2)
    first = torch.cat([each.flatten() for each in gradients(loaded, False, settings)])
    with torch.no_grad():
        loaded.model.eval()(input_ids=torch.arange(24)[None])  # packing rounds a little
    later = torch.cat([each.flatten() for each in gradients(loaded, False, settings)])
    assert torch.linalg.vector_norm(first - later) < 0.05 * torch.linalg.vector_norm(first)
