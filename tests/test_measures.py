import math
from functools import partial

import pytest
import torch
from torch import Tensor

from depthcut import measures
from depthcut.measures import DepthPairs, angular_distance, centred_alignments

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def states_at_angle(angle: float, *, hidden: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two float64 vectors of different lengths, exactly so far apart."""
    generator = torch.Generator().manual_seed(seed)
    plane = torch.randn(hidden, 2, dtype=torch.float64, generator=generator)
    first, second = torch.linalg.qr(plane).Q.T
    return 3 * first, 50 * (math.cos(angle) * first + math.sin(angle) * second)


@pytest.mark.parametrize("angle", [1e-5, 1e-4, 1e-2, 1.0, math.pi / 2, 3.0, math.pi - 1e-4])
def test_angles_are_exact_to_a_millionth(angle: float) -> None:
    before, after = states_at_angle(angle)
    assert angular_distance(before, after).item() == pytest.approx(angle / math.pi, rel=1e-6)


def test_small_angles_survive_float32() -> None:
    # arccos in float32 returns 0 here: redundant blocks would all tie for first place.
    before, after = states_at_angle(1e-4)
    distance = angular_distance(before.float(), after.float()).item()
    assert distance == pytest.approx(1e-4 / math.pi, rel=1e-3)
    pairs = DepthPairs.of([before[None].float(), after[None].float()])
    assert pairs.block_angles.item() == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("angle", [1e-4, 1e-2, 1.0, 3.0])
def test_pairs_know_small_angles(angle: float) -> None:
    before, after = states_at_angle(angle)
    pairs = DepthPairs.of([before[None], after[None]])
    assert pairs.block_angles.item() == pytest.approx(angle, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("step", "rel"), [(0.5, 1e-6), (0.03, 1e-6), (2e-3, 1e-5)])
def test_half_precision_loses_nothing_but_its_own_rounding(
    dtype: torch.dtype, step: float, rel: float
) -> None:
    torch.manual_seed(0)
    states = [torch.randn(50, 576)]
    for _ in range(30):  # in some components only: a small step of half precision is a coarse one
        states.append(states[-1] + step * torch.randn(50, 576) * (torch.rand(50, 576) < 0.3))
    states = [(state * 2**number**0.5).to(dtype) for number, state in enumerate(states)]
    exact = DepthPairs.of([state.double() for state in states]).block_angles
    found = DepthPairs.of(states).block_angles
    torch.testing.assert_close(found, exact, rtol=rel, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_agree_on_every_block_in_reading_order(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = list(torch.randn(5, 7, 32).cumsum(0).to(dtype))
    pairs = DepthPairs.of(states)
    blocks = [(start, stop) for start in range(5) for stop in range(start + 1, 5)]
    expected = torch.stack(
        [angular_distance(states[i].double(), states[j].double()) for i, j in blocks], dim=1
    )
    exact = torch.stack(states).double()
    rtol = 1e-9 if dtype in (torch.float64, torch.float32) else 1e-6
    close = partial(torch.testing.assert_close, rtol=rtol, atol=0)
    close(pairs.block_angles / math.pi, expected)
    layers = [blocks.index((start, start + 1)) for start in range(4)]
    close(pairs.layer_squared_chords, 2 - 2 * (math.pi * expected[:, layers]).cos())
    close(pairs.norms.double(), exact.norm(dim=-1).T)
    close(pairs.layer_additions, exact.diff(dim=0).norm(dim=-1).T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_float32_and_float64_for_float64(dtype: torch.dtype) -> None:
    ones = torch.ones(2, 3, dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert angular_distance(ones, ones).dtype == expected
    assert angular_distance(ones, ones).tolist() == [0, 0]


def test_opposite_states_are_one_apart() -> None:
    ones = torch.ones(3)
    assert angular_distance(ones, -ones).item() == 1
    assert DepthPairs.of([ones[None], -ones[None]]).block_angles.item() == pytest.approx(math.pi)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_the_length_of_a_state_does_not_matter(scale: float) -> None:
    before, after = states_at_angle(0.1)
    distance = angular_distance(before * scale, after)
    assert distance.item() == pytest.approx(0.1 / math.pi, rel=1e-9)


def test_a_zero_vector_is_orthogonal_to_everything_never_nan() -> None:
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    assert angular_distance(zero, one).item() == 0.5
    assert angular_distance(zero, zero).item() == 0.5
    pairs = DepthPairs.of([zero, one, zero])
    assert pairs.block_angles[0].tolist() == pytest.approx([math.pi / 2] * 3)
    assert pairs.layer_squared_chords.tolist() == [[2, 2]]


def test_equal_states_are_exactly_zero_apart() -> None:
    state = torch.randn(3, 50)
    assert DepthPairs.of([state, state, 2 * state]).block_angles.abs().max() < 1e-15
    assert angular_distance(state, 2 * state).abs().max() == 0


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        angular_distance(torch.ones(2, 3), torch.ones(3))


def test_the_states_are_left_as_they_are() -> None:
    before, after = torch.randn(2, 3), torch.randn(2, 3)
    copies = before.clone(), after.clone()
    angular_distance(before, after)
    DepthPairs.of([before, after])
    assert torch.equal(before, copies[0])
    assert torch.equal(after, copies[1])


def test_alignment_sees_through_rotation_scale_and_shift_and_nothing_else() -> None:
    torch.manual_seed(0)
    states = torch.randn(200, 64).double()
    rotation = torch.linalg.qr(torch.randn(64, 64).double()).Q
    found = centred_alignments([states, 3 * states @ rotation + 5, torch.randn(200, 64).double()])
    assert found[0, 1] == pytest.approx(1, abs=1e-9)
    assert abs(found[0, 2]) < 0.02
    assert torch.equal(found, found.T)


def test_alignment_of_few_tokens_of_great_width_is_not_taken_for_likeness() -> None:
    # The biased estimator says 0.95 here.
    torch.manual_seed(0)
    found = centred_alignments([torch.randn(20, 2000), torch.randn(20, 2000)])
    assert abs(found[0, 1]) < 0.2


def test_alignment_does_not_depend_on_how_many_rows_are_taken_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    states = list(torch.randn(4, 23, 8).cumsum(0))
    whole = centred_alignments(states)
    monkeypatch.setattr(measures, "_GRAM_BYTES", 5 * 8 * 4 * 23)
    torch.testing.assert_close(centred_alignments(states), whole, rtol=1e-12, atol=0)


def test_states_that_are_all_equal_are_aligned_with_nothing() -> None:
    found = centred_alignments([torch.ones(5, 3), torch.randn(5, 3)])
    assert found[0].tolist() == [0, 0]
    with pytest.raises(ValueError, match="3 tokens: CKA needs at least 4"):
        centred_alignments([torch.ones(3, 3)])
