"""Every entry of the table, by being there."""

import pytest
import torch
from transformers import PreTrainedModel

from depthcut.errors import SettingsError
from depthcut.surveying.criteria import CRITERIA, chosen, row_widths
from tests.surveying.surveys_for_tests import flat, make_sequences, per_sequence, survey
from tests.tiny import build_tiny

LAYERS = 6
NEARLY_ZERO = {"kl-block": 1e-5}
"""Divergences are taken from probabilities in float16 and sums in float32."""
NEVER_ZERO = ("weight-magnitude", "pruneme")
"""Weights have a size whatever they do; an arccos in float32 loses what is below 3e-4."""


def idle_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Of a llama: every layer adds exactly nothing."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    return model


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_what_it_says_and_nothing_else(name: str) -> None:
    criterion, sequences = CRITERIA[name], make_sequences()
    found = survey(build_tiny("llama"), sequences, criteria=[name])
    assert [(each.criterion, each.tokens) for each in found.scores] == [
        (name, tokens) for tokens in criterion.tokens
    ]
    for scores in found.scores:
        assert scores.scope == criterion.scope
        assert scores.paper == criterion.paper
        widths = row_widths(criterion, LAYERS, LAYERS // 2)
        assert tuple(len(row) for row in scores.mean) == widths
        assert tuple(len(row) for row in scores.stderr) == widths
        assert flat(scores.mean).isfinite().all()
        assert flat(scores.stderr).isfinite().all()
        rows = per_sequence(scores)
        assert 0 < len(rows) <= len(sequences.sequences)
        torch.testing.assert_close(rows.mean(dim=0), flat(scores.mean), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CRITERIA)
def test_scores_do_not_depend_on_the_batch_size_nor_on_padding(name: str) -> None:
    model, sequences = build_tiny("gemma3_text"), make_sequences()
    one, five = (survey(model, sequences, criteria=[name], batch_size=n) for n in (1, 5))
    for each in one.scores:
        other = five.find(each.criterion, each.tokens)
        torch.testing.assert_close(flat(each.mean), flat(other.mean), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_zero_for_layers_that_do_nothing(name: str) -> None:
    found = survey(idle_layers(build_tiny("llama")), make_sequences(), criteria=[name])
    for scores in found.scores:
        assert flat(scores.mean).abs().max() < NEARLY_ZERO.get(name, 1e-8) or name in NEVER_ZERO


@pytest.mark.parametrize("name", CRITERIA)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = build_tiny("gpt2").train()
    before = {key: parameter.clone() for key, parameter in model.named_parameters()}
    survey(model, make_sequences(), criteria=[name])
    assert all(module.training for module in model.modules())
    for key, parameter in model.named_parameters():
        assert torch.equal(before[key], parameter)
        assert parameter.requires_grad
        assert parameter.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_all_measures_every_criterion_at_once_as_alone() -> None:
    model, sequences = build_tiny("llama"), make_sequences()
    together = survey(model, sequences, criteria=["all"])
    assert {each.criterion for each in together.scores} == set(CRITERIA)
    for each in together.scores:
        alone = survey(model, sequences, criteria=[each.criterion])
        assert alone.find(each.criterion, each.tokens) == each


def test_criteria_come_in_the_order_of_the_table_and_once() -> None:
    assert list(chosen(["cosine", "angular", "cosine"])) == ["angular", "cosine"]
    assert list(chosen(["angular", "all"])) == list(CRITERIA)


def test_an_unknown_criterion_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"no criterion 'angulr' \(did you mean angular\?\)"):
        chosen(["angulr"])
    with pytest.raises(SettingsError, match="no criteria: choose from angular"):
        chosen([])


def test_sequences_too_short_for_a_criterion_are_refused_if_there_are_no_others() -> None:
    with pytest.raises(SettingsError, match="cka needs sequences of 4 tokens, the longest has 3"):
        survey(build_tiny("llama"), make_sequences([3, 2]), criteria=["cka"])
    found = survey(build_tiny("llama"), make_sequences([3, 9, 2]), criteria=["cka"])
    assert len(per_sequence(found.find("cka", "all"))) == 1
