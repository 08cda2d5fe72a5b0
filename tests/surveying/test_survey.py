"""The survey against an oracle that shares nothing with it but torch."""

import copy
import math
from array import array
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut.errors import SettingsError
from depthcut.model.loading import from_memory
from depthcut.model.states import reading_states
from depthcut.records import Survey, TextFacts
from depthcut.settings import LoadSettings, SurveySettings
from depthcut.surveying.criteria import CRITERIA
from depthcut.surveying.survey import survey_model
from depthcut.text.sequences import Sequences, padded
from tests.tiny import TINY_TYPES, VOCABULARY, build_tiny

LENGTHS = (12, 20, 5, 17, 2)
"""Batches of two: padding in each, and a last batch of one."""

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


def make_sequences(lengths: Sequence[int] = LENGTHS, *, seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]
    facts = TextFacts(source="random", digest="x", sequences=len(ids), tokens=sum(lengths))
    return Sequences(facts, tuple(ids), tuple(lengths))


def survey(model: PreTrainedModel, sequences: Sequences, **settings: object) -> Survey:
    chosen = SurveySettings(**{"batch_size": 2, **settings})
    return survey_model(from_memory(model, None), sequences, chosen, LoadSettings())


def oracle_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """(depths, tokens, hidden) float64: one sequence alone, the final norm replaced by nothing."""
    plain = copy.deepcopy(model)
    for parent in plain.modules():
        for name, child in list(parent.named_children()):
            # The final norm is the one beside the list of layers.
            beside = any(isinstance(each, nn.ModuleList) for each in parent.children())
            if name in FINAL_NORMS and beside:
                setattr(parent, name, nn.Identity())
            if name == "project_out" and child is not None:  # of OPT, behind its norm
                setattr(parent, name, nn.Identity())
                plain.lm_head = nn.Identity()
    with torch.no_grad():
        output = plain(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    return torch.stack([state[0] for state in output.hidden_states]).double()


def oracle(model: PreTrainedModel, sequences: Sequences) -> dict[tuple[str, str], list[Tensor]]:
    """For each criterion and choice of tokens: one row of entries per sequence, naively."""
    rows: dict[tuple[str, str], list[Tensor]] = {}
    for ids in sequences.sequences:
        states = oracle_states(model, ids)
        layers = len(states) - 1
        unit = states / states.norm(dim=-1, keepdim=True)
        angles = []
        for start in range(layers):
            for stop in range(start + 1, layers + 1):
                chord = (unit[start] - unit[stop]).norm(dim=-1)
                angles.append(2 * torch.asin((chord / 2).clamp(max=1)) / math.pi)
        added = states.diff(dim=0).norm(dim=-1)
        values = {
            "angular": torch.stack(angles, dim=1),
            "block-influence": (unit.diff(dim=0).norm(dim=-1) ** 2 / 2).T,
            "magnitude": (added / states[1:].norm(dim=-1)).T,
        }
        for name, each in values.items():
            rows.setdefault((name, "last"), []).append(each[-1])
            rows.setdefault((name, "all"), []).append(each.mean(dim=0))
    return rows


def flat(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([each for row in rows for each in row], dtype=torch.float64)


def check_against_oracle(
    found: Survey, expected: dict[tuple[str, str], list[Tensor]], *, rtol: float = 1e-6
) -> None:
    assert {(each.criterion, each.tokens) for each in found.scores} == set(expected)
    for scores in found.scores:
        values = torch.stack(expected[scores.criterion, scores.tokens])
        error = values.std(dim=0) / math.sqrt(len(values))
        torch.testing.assert_close(flat(scores.mean), values.mean(dim=0), rtol=rtol, atol=0)
        torch.testing.assert_close(flat(scores.stderr), error, rtol=10 * rtol, atol=1e-12)
        samples = torch.tensor(array("f", scores.per_sequence)).reshape(values.shape)
        torch.testing.assert_close(samples.double(), values, rtol=rtol, atol=0)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_every_score_is_the_oracle_s_to_a_millionth(model_type: str) -> None:
    # In float64, for in float32 the states themselves depend on the batch by as much; the
    # kernels of experts know no float64, so those models take one sequence a batch.
    model, sequences = build_tiny(model_type), make_sequences()
    experts = hasattr(model.config, "num_experts_per_tok")
    found = survey(model if experts else model.double(), sequences, batch_size=1 if experts else 2)
    check_against_oracle(found, oracle(model, sequences))


@pytest.mark.parametrize("std", [1e-3, 2e-2])
def test_the_tiny_angles_of_freshly_made_models_are_exact(std: float) -> None:
    model, sequences = build_tiny("llama").double(), make_sequences()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=std, generator=generator)
    found = survey(model, sequences)
    check_against_oracle(found, oracle(model, sequences))
    assert min(flat(found.find("angular", "all").mean)) < 3 * std


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_of_any_dtype_are_scored_exactly_as_they_are(dtype: torch.dtype) -> None:
    # One sequence a batch: otherwise the states differ by their own rounding.
    model, sequences = build_tiny("llama").to(dtype), make_sequences()
    found = survey(model, sequences, batch_size=1)
    check_against_oracle(found, oracle(model, sequences), rtol=1e-5)


def test_scores_do_not_depend_on_the_batch_size_nor_on_padding() -> None:
    model, sequences = build_tiny("gemma3_text"), make_sequences()
    one, five = (survey(model, sequences, batch_size=size) for size in (1, 5))
    for each in one.scores:
        other = five.find(each.criterion, each.tokens)
        torch.testing.assert_close(flat(each.mean), flat(other.mean), rtol=1e-5, atol=0)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model = build_tiny("llama")
    loaded = from_memory(model, None)
    batch = padded(make_sequences().sequences[:2])
    other = batch._replace(ids=batch.ids.masked_fill(~batch.mask, 99))
    with reading_states(loaded) as read_states:
        for one, two in zip(read_states(batch), read_states(other), strict=True):
            assert torch.equal(one[batch.mask], two[batch.mask])


def test_long_sequences_are_worked_on_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from depthcut.surveying import survey as module

    model, sequences = build_tiny("llama"), make_sequences()
    whole = survey(model, sequences)
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 8 * 7 * 48 * 3})  # three tokens
    parts = survey(model, sequences)
    for each in whole.scores:
        other = parts.find(each.criterion, each.tokens)
        torch.testing.assert_close(flat(each.mean), flat(other.mean), rtol=1e-12, atol=0)
    assert whole.norms == pytest.approx(parts.norms)


def test_the_record_says_what_was_measured() -> None:
    model, sequences = build_tiny("llama"), make_sequences()
    found = survey(model, sequences)
    assert found.model == from_memory(model, None).facts
    assert found.text == sequences.facts
    assert len(found.norms) == 7
    assert [len(row) for row in found.find("angular", "last").mean] == [6, 5, 4, 3, 2, 1]
    assert [len(row) for row in found.find("magnitude", "all").mean] == [1] * 6
    norms = torch.stack(
        [oracle_states(model, ids).norm(dim=-1).mean(dim=1) for ids in sequences.sequences]
    )
    assert found.norms == pytest.approx(norms.mean(dim=0).tolist(), rel=1e-6)


def test_the_inputs_digest_tells_texts_models_and_settings_apart() -> None:
    model, sequences = build_tiny("llama"), make_sequences()
    other = build_tiny("llama")
    with torch.no_grad():
        other.model.layers[2].mlp.up_proj.weight.add_(1)
    digests = {
        survey(model, sequences).origin.inputs,
        survey(model, sequences, tokens=77).origin.inputs,
        survey(other, sequences).origin.inputs,
    }
    assert len(digests) == 3


def test_one_sequence_has_no_standard_error() -> None:
    found = survey(build_tiny("llama"), make_sequences([9]))
    assert set(flat(found.find("angular", "last").stderr).tolist()) == {0.0}


def test_the_model_is_left_as_it_was() -> None:
    model = build_tiny("gpt2").train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    survey(model, make_sequences())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], each) for name, each in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_dropout_is_off_while_measuring() -> None:
    model, sequences = build_tiny("gpt2"), make_sequences()
    expected = survey(model, sequences)
    assert survey(model.train(), sequences).norms == expected.norms


def test_states_that_overflow_are_refused() -> None:
    model = build_tiny("llama")
    with torch.no_grad():
        model.model.layers[3].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(SettingsError, match="overflow: choose --dtype"):
        survey(model, make_sequences())


def test_sequences_longer_than_the_learned_positions_are_refused() -> None:
    with pytest.raises(SettingsError, match="20 tokens, but in memory has 16 positions: lower"):
        survey(build_tiny("gpt2", max_position_embeddings=16), make_sequences())


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch size 0"):
        survey(build_tiny("llama"), make_sequences(), batch_size=0)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_is_zero_for_layers_that_do_nothing(name: str) -> None:
    model = build_tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight.zero_()
            layer.self_attn.o_proj.weight.zero_()
    found = survey(model, make_sequences())
    for tokens in ("last", "all"):
        scores = flat(found.find(name, tokens).mean)
        assert len(scores) == (21 if CRITERIA[name].scope == "block" else 6)
        assert scores.abs().max() < 1e-8
