import math

import pytest
import torch
from torch import Tensor

from depthcut.measures import InnerProducts, angular_distance

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
    products = InnerProducts.of([before[None].float(), after[None].float()])
    assert products.block_cosines.arccos().item() == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize("angle", [1e-4, 1e-2, 1.0, 3.0])
def test_inner_products_know_small_angles(angle: float) -> None:
    before, after = states_at_angle(angle)
    products = InnerProducts.of([before[None], after[None]])
    assert products.block_cosines.arccos().item() == pytest.approx(angle, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_agree_on_every_block_in_reading_order(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = list(torch.randn(5, 7, 32).cumsum(0).to(dtype))
    products = InnerProducts.of(states)
    blocks = [(start, stop) for start in range(5) for stop in range(start + 1, 5)]
    expected = torch.stack(
        [angular_distance(states[i].double(), states[j].double()) for i, j in blocks], dim=1
    )
    torch.testing.assert_close(
        products.block_cosines.arccos() / math.pi, expected, rtol=1e-9, atol=0
    )
    layers = [blocks.index((start, start + 1)) for start in range(4)]
    torch.testing.assert_close(products.layer_cosines, products.block_cosines[:, layers])
    exact = torch.stack(states).double()
    torch.testing.assert_close(products.norms, exact.norm(dim=-1).T)
    torch.testing.assert_close(products.layer_distances, exact.diff(dim=0).norm(dim=-1).T)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_is_float32_and_float64_for_float64(dtype: torch.dtype) -> None:
    ones = torch.ones(2, 3, dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert angular_distance(ones, ones).dtype == expected
    assert angular_distance(ones, ones).tolist() == [0, 0]


def test_opposite_states_are_one_apart() -> None:
    ones = torch.ones(3)
    assert angular_distance(ones, -ones).item() == 1
    assert InnerProducts.of([ones[None], -ones[None]]).block_cosines.item() == pytest.approx(-1)


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e150])
def test_the_length_of_a_state_does_not_matter(scale: float) -> None:
    before, after = states_at_angle(0.1)
    distance = angular_distance(before * scale, after)
    assert distance.item() == pytest.approx(0.1 / math.pi, rel=1e-9)


def test_a_zero_vector_is_orthogonal_to_everything_never_nan() -> None:
    zero, one = torch.zeros(1, 4), torch.ones(1, 4)
    assert angular_distance(zero, one).item() == 0.5
    assert angular_distance(zero, zero).item() == 0.5
    products = InnerProducts.of([zero, one, zero])
    assert products.block_cosines.tolist() == [[0, 0, 0]]
    assert products.layer_cosines.tolist() == [[0, 0]]


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        angular_distance(torch.ones(2, 3), torch.ones(3))


def test_the_states_are_left_as_they_are() -> None:
    before, after = torch.randn(2, 3), torch.randn(2, 3)
    copies = before.clone(), after.clone()
    angular_distance(before, after)
    InnerProducts.of([before, after])
    assert torch.equal(before, copies[0])
    assert torch.equal(after, copies[1])
