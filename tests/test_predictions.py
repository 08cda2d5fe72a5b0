import math

import pytest
import torch

from depthcut import predictions
from depthcut.predictions import token_divergences, token_losses


def logits(seed: int, tokens: int = 37, vocabulary: int = 11) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(tokens, vocabulary, generator=generator)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions, "CHUNK_BYTES", 4 * 11 * 5)  # 5 tokens: 37 is no multiple


@pytest.mark.usefixtures("small_chunks")
def test_losses_agree_with_a_plain_computation_in_float64() -> None:
    scores, targets = logits(0), torch.arange(37) % 11
    wide = scores.double()
    expected = wide.exp().sum(1).log() - wide[torch.arange(37), targets]
    torch.testing.assert_close(token_losses(scores, targets).double(), expected)


@pytest.mark.usefixtures("small_chunks")
def test_divergences_agree_with_a_plain_computation_in_float64() -> None:
    first, other = logits(0), logits(1)
    p, q = (scores.double().softmax(1) for scores in (first, other))
    expected = (p * (p / q).log()).sum(1)
    found, agreements = token_divergences(first, other)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert agreements.tolist() == (p.argmax(1) == q.argmax(1)).tolist()


def test_same_logits_diverge_by_exactly_nothing() -> None:
    divergences, agreements = token_divergences(logits(0), logits(0))
    assert divergences.max() == 0
    assert agreements.all()


def test_impossible_tokens_do_not_make_the_divergence_undefined() -> None:
    first, other = logits(0), logits(1)
    first[:, 3] = other[:, 3] = -math.inf
    first[:, 4] = -math.inf  # possible for the other only: costs nothing
    assert token_divergences(first, other)[0].isfinite().all()
    assert token_divergences(other, first)[0].isinf().all()


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same"):
        token_divergences(logits(0), logits(0, vocabulary=12))


def test_bfloat16_logits_are_measured_in_float32() -> None:
    scores = logits(0).bfloat16()
    losses = token_losses(scores, torch.zeros(37, dtype=torch.int64))
    expected = -scores.double().log_softmax(1)[:, 0]
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_tokens_give_no_losses() -> None:
    assert token_losses(logits(0, tokens=0), torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert token_divergences(logits(0, tokens=0), logits(1, tokens=0))[0].shape == (0,)
