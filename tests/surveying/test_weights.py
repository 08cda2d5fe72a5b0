"""Weights and gradients against plain autograd."""

import pytest
import torch
from torch.nn import functional

from depthcut.errors import SettingsError
from tests.surveying.surveys_for_tests import flat, make_sequences, per_sequence, survey
from tests.tiny import TINY_TYPES, build_tiny

NO_FLOAT64 = ("mixtral", "qwen3_moe")
"""Kernels of experts know no float64."""


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_taylor_is_that_of_plain_autograd(model_type: str) -> None:
    model, sequences = build_tiny(model_type), make_sequences()
    exact = model_type not in NO_FLOAT64
    model = model.double() if exact else model
    found = survey(model, sequences, criteria=["taylor"]).find("taylor", "all")
    layers = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    expected = []
    for ids in sequences.sequences:
        model.zero_grad()
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        losses = [functional.cross_entropy(logits[t], ids[t + 1]) for t in range(len(ids) - 1)]
        torch.stack(losses).mean().backward()
        rows = [
            sum(float((each * each.grad).detach().abs().sum()) for each in layer.parameters())
            for layer in layers
        ]
        expected.append(torch.tensor(rows, dtype=torch.float64))
    rtol = 1e-6 if exact else 1e-4
    torch.testing.assert_close(per_sequence(found), torch.stack(expected), rtol=rtol, atol=0)
    mean = torch.stack(expected).mean(dim=0)
    torch.testing.assert_close(flat(found.mean), mean, rtol=1e-9 if exact else 1e-4, atol=0)


def test_the_magnitude_of_weights_is_their_sum_and_the_same_for_each_sequence() -> None:
    model, sequences = build_tiny("gpt2"), make_sequences()
    found = survey(model, sequences, criteria=["weight-magnitude"]).find("weight-magnitude", "all")
    expected = [
        sum(float(each.detach().double().abs().sum()) for each in layer.parameters())
        for layer in model.transformer.h
    ]
    assert [row[0] for row in found.mean] == pytest.approx(expected, rel=1e-12)
    assert {row[0] for row in found.stderr} == {0.0}
    assert len(per_sequence(found)) == len(sequences.sequences)


def test_gradients_flags_and_what_is_frozen_are_given_back() -> None:
    model = build_tiny("llama")
    frozen = model.model.layers[2].mlp.up_proj.weight.requires_grad_(False)
    kept = model.model.layers[3].mlp.up_proj.weight
    kept.grad = torch.ones_like(kept)
    plain = survey(build_tiny("llama"), make_sequences(), criteria=["taylor"])
    found = survey(model, make_sequences(), criteria=["taylor"])
    assert found.scores == plain.scores  # frozen weights count too
    assert not frozen.requires_grad
    assert frozen.grad is None
    assert torch.equal(kept.grad, torch.ones_like(kept))
    assert not kept._post_accumulate_grad_hooks
    others = [each for each in model.parameters() if each is not frozen]
    assert all(each.requires_grad for each in others)
    assert all(each.grad is None for each in others if each is not kept)


def test_one_gradient_exists_at_a_time() -> None:
    model, most = build_tiny("llama"), 0

    def watch(*_: object) -> None:
        nonlocal most
        most = max(most, sum(each.grad is not None for each in model.parameters()))

    hooks = [each.register_post_accumulate_grad_hook(watch) for each in model.parameters()]
    survey(model, make_sequences([9, 9]), criteria=["taylor"])
    for hook in hooks:
        hook.remove()
    assert most == 1


@pytest.mark.parametrize("name", ["weight-magnitude", "taylor"])
def test_quantised_weights_are_refused(name: str) -> None:
    model = build_tiny("llama")
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(SettingsError, match=f"{name} needs the weights .* are quantised: load it"):
        survey(model, make_sequences(), criteria=[name])


def test_gradients_in_float16_are_refused() -> None:
    with pytest.raises(SettingsError, match="taylor: small gradients vanish in float16; choose"):
        survey(build_tiny("llama").half(), make_sequences(), criteria=["taylor"])


def test_large_tensors_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from depthcut import measures

    first, second = torch.randn(2, 7, 11).bfloat16()
    expected = (first.double() * second.double()).abs().sum()
    whole = measures.absolute_sum(first, second)
    monkeypatch.setattr(measures, "_SUMMED_AT_ONCE", 5)
    torch.testing.assert_close(measures.absolute_sum(first, second), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(whole, expected, rtol=1e-6, atol=0)
