import math

import pytest
import torch

from depthcut.errors import TextError
from depthcut.evaluation.estimates import bits_per_byte, perplexity, ratio_estimate
from depthcut.records import Estimate


def samples(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums and sizes of sequences of very different length, each with its own difficulty."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(5, 200, (count,), generator=generator)
    difficulty = 3 + 0.4 * torch.randn(count, generator=generator, dtype=torch.float64)
    return difficulty * sizes, sizes


def test_mean_is_over_tokens_not_over_sequences() -> None:
    found = ratio_estimate(torch.tensor([1.0, 30.0]), torch.tensor([1, 10]))
    assert found.value == pytest.approx(31 / 11)


def test_error_agrees_with_the_bootstrap_over_sequences() -> None:
    sums, sizes = samples(300)
    generator = torch.Generator().manual_seed(1)
    picks = torch.randint(300, (4000, 300), generator=generator)
    means = sums[picks].sum(1) / sizes[picks].sum(1)
    assert ratio_estimate(sums, sizes).stderr == pytest.approx(means.std().item(), rel=0.05)


def test_error_with_equal_sizes_is_the_usual_one_of_a_mean() -> None:
    sums, sizes = samples(50)[0], torch.full((50,), 10)
    expected = (sums / 10).std().item() / math.sqrt(50)
    assert ratio_estimate(sums, sizes).stderr == pytest.approx(expected)


def test_error_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        found = ratio_estimate(*samples(60, seed))
        hits += abs(found.value - 3) < 1.96 * found.stderr
    assert 0.9 < hits / 200 <= 0.99


def test_paired_difference_has_a_smaller_error_than_either_loss() -> None:
    sums, sizes = samples(100)
    generator = torch.Generator().manual_seed(2)
    worse = sums + sizes * (0.1 + 0.01 * torch.randn(100, generator=generator))
    paired = ratio_estimate(worse - sums, sizes)
    assert paired.value == pytest.approx(0.1, abs=0.01)
    assert paired.stderr < ratio_estimate(sums, sizes).stderr / 10


def test_sequences_without_size_change_nothing() -> None:
    sums, sizes = samples(20)
    nothing = torch.zeros(5)
    padded = ratio_estimate(torch.cat([sums, nothing]), torch.cat([sizes, nothing.long()]))
    assert padded == ratio_estimate(sums, sizes)


def test_one_sequence_is_refused_because_its_error_is_unknown() -> None:
    with pytest.raises(TextError, match="at least 2 are needed"):
        ratio_estimate(torch.tensor([3.0]), torch.tensor([2]))


def test_perplexity_carries_the_error_of_the_loss() -> None:
    step = 1e-6
    slope = (math.exp(2.5 + step) - math.exp(2.5 - step)) / (2 * step)
    found = perplexity(Estimate(value=2.5, stderr=0.01))
    assert found.value == pytest.approx(math.exp(2.5))
    assert found.stderr == pytest.approx(slope * 0.01)


def test_perplexity_of_a_hopeless_model_is_still_a_number() -> None:
    assert math.isfinite(perplexity(Estimate(value=1e6, stderr=0.1)).value)


def test_bits_per_byte_divides_bits_by_bytes() -> None:
    found = bits_per_byte(torch.tensor([2.0, 4.0]) * math.log(2), torch.tensor([1, 2]))
    assert found.value == pytest.approx(2.0)
    assert found.stderr == pytest.approx(0.0, abs=1e-12)
