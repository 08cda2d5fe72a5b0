"""Per-token comparisons of next-token distributions, a few tokens at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 64 * 2**20
"""Float32 log-probabilities of at most so many bytes exist at once, per model."""


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Next-token loss in nats at each position.

    Args:
        logits: Scores of the next token, shape (tokens, vocabulary), any float dtype.
        targets: The tokens that came, shape (tokens,), int64.

    Returns:
        Shape (tokens,), float32, at least 0.
    """
    losses = [
        functional.cross_entropy(logits[part].float(), targets[part], reduction="none")
        for part in _chunks(logits)
    ]
    return torch.cat(losses) if losses else logits.new_zeros(0, dtype=torch.float32)


def token_divergences(reference: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence and top-1 agreement at each position.

    Args:
        reference: Logits of the first model, shape (tokens, vocabulary), any float dtype.
        other: Logits of another one, same shape.

    Returns:
        KL(reference ‖ other) in nats, float32, at least 0; and whether both have the same
        most probable token, bool. Both of shape (tokens,).

    Raises:
        ValueError: The shapes differ.
    """
    if reference.shape != other.shape:
        raise ValueError(f"logits of shapes {reference.shape} and {other.shape}: expected the same")
    divergences, agreements = [], []
    for part in _chunks(reference):
        p = functional.log_softmax(reference[part].float(), dim=-1)
        q = functional.log_softmax(other[part].float(), dim=-1)
        agreements.append(p.argmax(-1) == q.argmax(-1))
        weights = p.exp()
        terms = (weights * (p - q)).masked_fill(weights == 0, 0.0)  # 0 * (-inf) counts as 0
        divergences.append(terms.sum(-1).clamp(min=0.0))
    if not divergences:
        empty = reference.new_zeros(0, dtype=torch.float32)
        return empty, empty.bool()
    return torch.cat(divergences), torch.cat(agreements)


def _chunks(logits: Tensor) -> Iterator[slice]:
    tokens, vocabulary = logits.shape
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, tokens, size):
        yield slice(start, start + size)
