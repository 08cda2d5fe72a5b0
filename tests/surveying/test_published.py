"""What published code computes, written again from its formulas, against what a survey says."""

import csv
import io
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from depthcut.errors import SettingsError
from depthcut.reporting.exports import survey_csv
from tests.surveying.surveys_for_tests import make_sequences, survey
from tests.tiny import TINY_TYPES, build_tiny

LENGTHS = (12, 20, 5, 17, 9, 8, 30)
"""Three batches of two, and one that is not full."""


def hidden_states(model: PreTrainedModel, sequences: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """As these tools take them: padded on the right, with a mask."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    states: tuple[Tensor, ...] = output.hidden_states
    return states


def pruneme_distances(
    model: PreTrainedModel, sequences: Sequence[Tensor], size: int, *, batch_size: int
) -> dict[tuple[int, int], float]:
    """By (block_start, block_end): angular distances of blocks of so many layers."""
    by_block: dict[tuple[int, int], list[float]] = {}
    for first in range(0, len(sequences) - batch_size + 1, batch_size):
        batch = sequences[first : first + batch_size]
        last = [
            torch.stack([state[row, len(ids) - 1] for row, ids in enumerate(batch)])
            for state in hidden_states(model, batch)
        ][1:]
        for start in range(len(last) - size):
            one, other = (
                each / torch.norm(each, dim=-1, keepdim=True)
                for each in (last[start], last[start + size])
            )
            cosines = (one * other).sum(-1).clamp(min=-1, max=1)
            distance = (torch.acos(cosines) / torch.pi).mean().item()
            by_block.setdefault((start + 1, start + 1 + size), []).append(distance)
    return {block: sum(values) / len(values) for block, values in by_block.items()}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("model_type", sorted(set(TINY_TYPES) - {"opt"}))
def test_pruneme_writes_the_same_rows(model_type: str, size: int) -> None:
    # Not OPT, whose last state has another width here, at which PruneMe stops.
    model, sequences = build_tiny(model_type), make_sequences(LENGTHS)
    found = survey(model, sequences, criteria=["pruneme"], batch_size=2)
    rows = csv.DictReader(io.StringIO(survey_csv(found.find("pruneme", "last"), size)))
    ours = {
        (int(row["block_start"]), int(row["block_end"])): float(row["average_distance"])
        for row in rows
    }
    theirs = pruneme_distances(model, sequences.sequences, size, batch_size=2)
    assert list(ours) == list(theirs)
    assert list(ours.values()) == pytest.approx(list(theirs.values()), rel=1e-5)


def test_pruneme_rounds_as_the_model_s_dtype_does() -> None:
    model, sequences = build_tiny("llama").bfloat16(), make_sequences([16] * 6)
    found = survey(model, sequences, criteria=["pruneme", "angular"], batch_size=2)
    theirs = pruneme_distances(model, sequences.sequences, 1, batch_size=2)
    ours = {(b, b + 1): row[0] for b, row in enumerate(found.find("pruneme", "last").mean) if row}
    assert ours == theirs
    exact = [row[0] for row in found.find("angular", "last").mean[1:]]
    assert list(ours.values()) != pytest.approx(exact, rel=1e-3)


def test_a_batch_that_is_not_full_is_passed_over() -> None:
    model, sequences = build_tiny("llama"), make_sequences(LENGTHS)
    seven = survey(model, sequences, criteria=["pruneme"], batch_size=3)
    six = survey(model, make_sequences(LENGTHS[:6]), criteria=["pruneme"], batch_size=3)
    assert seven.scores == six.scores
    with pytest.raises(SettingsError, match="7 sequences fill none of 8: lower --batch-size"):
        survey(model, sequences, criteria=["pruneme"], batch_size=8)


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_block_influence_is_that_of_the_hidden_states(model_type: str) -> None:
    # ShortGPT: 1 - E[x_i x_(i+1) / (|x_i| |x_(i+1)|)]; the last layer's is behind the final norm
    # there, and left out here.
    model, sequences = build_tiny(model_type), make_sequences(LENGTHS)
    found = survey(model, sequences, criteria=["block-influence"])
    layers = len(found.norms) - 1
    expected: list[list[float]] = [[] for _ in range(layers - 1)]
    for ids in sequences.sequences:
        states = [state[0].double() for state in hidden_states(model, [ids])]
        for layer in range(layers - 1):
            cosines = [
                float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))
                for one, other in zip(states[layer], states[layer + 1], strict=True)
            ]
            expected[layer].append(1 - sum(cosines) / len(cosines))
    ours = [row[0] for row in found.find("block-influence", "all").mean][:-1]
    assert ours == pytest.approx([sum(each) / len(each) for each in expected], rel=1e-4)
