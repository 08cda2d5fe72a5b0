"""The survey against an oracle that shares nothing with it but torch."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut.errors import SettingsError
from depthcut.model.loading import from_memory
from depthcut.model.states import reading_states
from depthcut.records import Survey
from depthcut.surveying.criteria import CRITERIA
from depthcut.text.sequences import Sequences, padded
from tests.surveying.surveys_for_tests import flat, make_sequences, per_sequence, survey
from tests.tiny import TINY_TYPES, build_tiny

OF_STATES = tuple(
    name for name, each in CRITERIA.items() if each.needs in ("pairs", "centred pairs", "sequence")
)
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm")


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


def hsic(first: Tensor, second: Tensor) -> float:
    """The unbiased estimator of Song et al., as it is written in arXiv:2010.15327."""
    tokens = len(first)
    k, other = first @ first.T, second @ second.T
    k.fill_diagonal_(0)
    other.fill_diagonal_(0)
    ones = torch.ones(tokens).double()
    value = (k @ other).trace()
    value += (ones @ k @ ones) * (ones @ other @ ones) / ((tokens - 1) * (tokens - 2))
    value -= 2 / (tokens - 2) * (ones @ k @ other @ ones)
    return float(value) / (tokens * (tokens - 3))


def oracle(model: PreTrainedModel, sequences: Sequences) -> dict[tuple[str, str], list[Tensor]]:
    """For each criterion and choice of tokens: one row of entries per sequence, naively."""
    rows: dict[tuple[str, str], list[Tensor]] = {}
    for ids in sequences.sequences:
        states = oracle_states(model, ids)
        layers = len(states) - 1
        unit = states / states.norm(dim=-1, keepdim=True)
        centred = states - states.mean(dim=1, keepdim=True)
        blocks = [(i, j) for i in range(layers) for j in range(i + 1, layers + 1)]
        chords = torch.stack([(unit[i] - unit[j]).norm(dim=-1) for i, j in blocks], dim=1)
        added = states.diff(dim=0).norm(dim=-1)
        values = {
            "angular": 2 * torch.asin((chords / 2).clamp(max=1)) / math.pi,
            "cosine": chords**2 / 2,
            "cosine-centred": torch.stack(
                [1 - torch.cosine_similarity(centred[i], centred[j], dim=-1) for i, j in blocks],
                dim=1,
            ),
            "euclidean": torch.stack(
                [(states[j] - states[i]).norm(dim=-1) / states[j].norm(dim=-1) for i, j in blocks],
                dim=1,
            ),
            "block-influence": (unit.diff(dim=0).norm(dim=-1) ** 2 / 2).T,
            "relative-magnitude": (added / states[1:].norm(dim=-1)).T,
        }
        for name, each in values.items():
            rows.setdefault((name, "last"), []).append(each[-1])
            rows.setdefault((name, "all"), []).append(each.mean(dim=0))
        if len(ids) >= 4:
            own = [hsic(state, state) for state in states]
            aligned = [hsic(states[i], states[j]) / math.sqrt(own[i] * own[j]) for i, j in blocks]
            rows.setdefault(("cka", "all"), []).append(
                1 - torch.tensor(aligned, dtype=torch.float64)
            )
    return rows


def check_against_oracle(
    found: Survey, expected: dict[tuple[str, str], list[Tensor]], *, rtol: float = 1e-6
) -> None:
    assert {(each.criterion, each.tokens) for each in found.scores} <= set(expected)
    for scores in found.scores:
        values = torch.stack(expected[scores.criterion, scores.tokens])
        error = values.std(dim=0) / math.sqrt(len(values))
        torch.testing.assert_close(flat(scores.mean), values.mean(dim=0), rtol=rtol, atol=1e-13)
        torch.testing.assert_close(flat(scores.stderr), error, rtol=10 * rtol, atol=1e-12)
        torch.testing.assert_close(per_sequence(scores), values, rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_every_score_is_the_oracle_s_to_a_millionth(model_type: str) -> None:
    # In float64, for in float32 the states themselves depend on the batch by as much; the
    # kernels of experts know no float64, so those models take one sequence a batch.
    model, sequences = build_tiny(model_type), make_sequences()
    experts = hasattr(model.config, "num_experts_per_tok")
    found = survey(
        model if experts else model.double(),
        sequences,
        batch_size=1 if experts else 2,
        criteria=OF_STATES,
    )
    assert len(found.scores) == 13
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
    whole = survey(model, sequences, criteria=OF_STATES)
    monkeypatch.setattr(module, "_CHUNK_BYTES", {"cpu": 8 * 7 * 48 * 3})  # six tokens
    parts = survey(model, sequences, criteria=OF_STATES)
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
    assert [len(row) for row in found.find("relative-magnitude", "all").mean] == [1] * 6
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
        survey(model, sequences, criteria=["angular"]).origin.inputs,
    }
    assert len(digests) == 4


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
