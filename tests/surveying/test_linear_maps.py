"""The best linear map of each block, against plain least squares."""

import pytest
import torch
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.surveying import linear_maps as module
from depthcut.surveying.criteria import CRITERIA
from tests.surveying.surveys_for_tests import flat, make_sequences, per_sequence, survey
from tests.tiny import build_tiny

LAYERS = 6
LENGTHS = (40, 30, 50, 20, 33)
"""Three to fit on, two to score: half of them lie within a batch of two."""


def states_of(model: nn.Module, ids: Tensor) -> Tensor:
    plain = model.model
    norm, plain.norm = plain.norm, nn.Identity()
    with torch.no_grad():
        output = plain(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    plain.norm = norm
    return torch.stack([state[0] for state in output.hidden_states]).double()


def test_scores_are_those_of_plain_least_squares_on_sequences_it_never_saw() -> None:
    model, sequences = build_tiny("llama").double(), make_sequences(LENGTHS)
    found = survey(model, sequences, criteria=["linear-map"], largest_block=3)
    states = [states_of(model, ids) for ids in sequences.sequences]
    entries: dict[str, list[list[float]]] = {"last": [[], []], "all": [[], []]}
    for start in range(LAYERS):
        for stop in range(start + 1, min(start + 3, LAYERS) + 1):
            rows, targets, squares = [], [], torch.zeros(()).double()
            for sequence in states[:3]:
                for before, after in zip(sequence[start], sequence[stop], strict=True):
                    rows.append(before / after.norm())
                    targets.append((after - before) / after.norm())
                    squares += (before / after.norm()).square().mean()
            # The ridge as further rows of the system.
            rows += list((module.RIDGE * squares).sqrt() * torch.eye(48).double())
            targets += [torch.zeros(48).double()] * 48
            best = torch.linalg.lstsq(torch.stack(rows), torch.stack(targets)).solution
            for number, sequence in enumerate(states[3:]):
                errors = sequence[stop] - sequence[start] - sequence[start] @ best
                relative = errors.norm(dim=-1) / sequence[stop].norm(dim=-1)
                entries["last"][number].append(float(relative[-1]))
                entries["all"][number].append(float(relative.mean()))
    for tokens, expected in entries.items():
        scores = found.find("linear-map", tokens)  # type: ignore[arg-type]  # last or all
        assert [len(row) for row in scores.mean] == [3, 3, 3, 3, 2, 1]
        values = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(per_sequence(scores), values, rtol=1e-6, atol=0)
        torch.testing.assert_close(flat(scores.mean), values.mean(dim=0), rtol=1e-9, atol=0)


def test_a_block_that_is_linear_scores_zero_although_it_changes_much() -> None:
    model = build_tiny("llama")
    turn = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0))).Q

    class Turning(nn.Module):
        def forward(self, hidden_states: Tensor, **_: object) -> Tensor:
            return hidden_states @ turn

    model.model.layers[2] = Turning()
    asked = ["linear-map", "euclidean"]
    found = survey(model, make_sequences([300] * 4), criteria=asked, largest_block=1)
    scores = [row[0] for row in found.find("linear-map", "all").mean]
    assert min(range(LAYERS), key=lambda layer: scores[layer]) == 2
    assert scores[2] < 0.05
    assert found.find("euclidean", "all").mean[2][0] > 1


def test_a_few_huge_tokens_do_not_take_the_map_for_themselves() -> None:
    torch.manual_seed(0)
    mapped = torch.eye(16).double() + 0.3 * torch.randn(16, 16).double()
    before = torch.randn(200, 16).double()
    after = before @ mapped
    after[::50] = 1e6 * torch.randn(4, 16).double()
    criteria = {"linear-map": CRITERIA["linear-map"]}
    maps = module.LinearMaps([(0, 1)], criteria, fitting=1, width=16)
    maps.add([torch.stack([before, before]), torch.stack([after, after])], [200, 200])
    assert float(maps.rows["linear-map", "last"][0]) < 0.1


def test_half_of_the_layers_is_the_largest_block_unless_told() -> None:
    found = survey(build_tiny("llama"), make_sequences(LENGTHS), criteria=["linear-map"])
    assert [len(row) for row in found.find("linear-map", "all").mean] == [3, 3, 3, 3, 2, 1]


@pytest.mark.parametrize("largest", [0, 6, -1])
def test_a_largest_block_of_no_or_all_layers_is_refused(largest: int) -> None:
    with pytest.raises(SettingsError, match=r"largest-block .* 6 layers, .* may hold 1 to 5"):
        survey(build_tiny("llama"), make_sequences(), largest_block=largest)


def test_one_sequence_cannot_be_fitted_on_and_scored() -> None:
    with pytest.raises(SettingsError, match=r"linear-map fits on half of the sequences .* is one"):
        survey(build_tiny("llama"), make_sequences([9]), criteria=["linear-map"])


def test_more_memory_than_there_is_is_refused_in_advance(monkeypatch: pytest.MonkeyPatch) -> None:
    # 15 blocks of two matrices of 48 x 48 float64.
    monkeypatch.setattr(module, "free_memory_bytes", lambda _: 15 * 2 * 48**2 * 8 / 0.4 - 1)
    with pytest.raises(SettingsError, match=r"0\.0 GB .* up to 3 layers, .* --largest-block 2"):
        survey(build_tiny("llama"), make_sequences(), criteria=["linear-map"])
    monkeypatch.setattr(module, "free_memory_bytes", lambda _: 1000)
    with pytest.raises(SettingsError, match="leave linear-map out of --criteria"):
        survey(build_tiny("llama"), make_sequences(), criteria=["linear-map"])
