import importlib
import sys

import pytest
import torch

from depthcut.errors import MissingExtraError
from depthcut.healing.training.train import seeded
from depthcut.healing.weights import adapters
from depthcut.healing.weights.adapters import adapted
from depthcut.model.loading import from_memory
from depthcut.settings import HealSettings
from tests.tiny import TINY_TYPES, build_tiny


@pytest.mark.parametrize("model_type", list(TINY_TYPES))
def test_the_model_is_as_before_afterwards(model_type: str) -> None:
    model = build_tiny(model_type)
    model.train()
    model.model.layers[0].eval() if model_type == "llama" else None
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    modules = {name: (id(module), module.training) for name, module in model.named_modules()}
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    flags = [weight.requires_grad for weight in model.parameters()]
    with seeded(0), adapted(from_memory(model, None), HealSettings(rank=2), None) as wrapped:
        assert any("lora" in name for name, _ in wrapped.named_modules())
    assert modules == {name: (id(m), m.training) for name, m in model.named_modules()}
    assert flags == [weight.requires_grad for weight in model.parameters()]
    assert all(weights[name].equal(weight) for name, weight in model.state_dict().items())


def test_only_float32_adapters_train_on_bfloat16_weights() -> None:
    model = build_tiny("llama").to(torch.bfloat16)
    with seeded(0), adapted(from_memory(model, None), HealSettings(rank=2), None) as wrapped:
        trained = {name: p.dtype for name, p in wrapped.named_parameters() if p.requires_grad}
    assert set(trained.values()) == {torch.float32}
    assert all("lora_" in name for name in trained)
    assert len(trained) == 6 * 7 * 2
    assert not any("lm_head" in name for name in trained)


def test_a_fresh_adapter_changes_nothing() -> None:
    model, ids = build_tiny("llama"), torch.arange(9)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with seeded(0), adapted(from_memory(model, None), HealSettings(rank=2), None) as wrapped:
            assert wrapped(input_ids=ids).logits.equal(before)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'depthcut\[heal\]'"):
        importlib.reload(adapters)
    monkeypatch.undo()
    importlib.reload(adapters)
