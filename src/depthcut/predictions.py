"""Next-token distributions against targets and each other, a few tokens at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES = 64 * 2**20
"""Float32 log-probabilities of at most so many bytes exist at once, per model."""
_SMALL_CHUNK_BYTES = 4 * 2**20
"""What stays near a processor between one reading and the next."""


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


class Reference(NamedTuple):
    """Next-token distributions to compare many others with, in half the bytes of float32."""

    probabilities: Tensor
    """(tokens, vocabulary) float16: those below 6e-8 vanish."""
    mass: Tensor
    """What is left of each distribution's 1, (tokens,) float32."""
    negentropy: Tensor
    """Its sum of p log p in nats, (tokens,) float32."""


def reference_of(logits: Tensor) -> Reference:
    """The distributions that logits stand for.

    Args:
        logits: Scores of the next token, shape (tokens, vocabulary), any float dtype.
    """
    probabilities = logits.new_empty(logits.shape, dtype=torch.float16)
    mass, negentropy = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
    for part in _chunks(logits, _SMALL_CHUNK_BYTES):
        logs = functional.log_softmax(logits[part].float(), dim=-1)
        probabilities[part] = logs.exp()
        stored = probabilities[part].float()
        mass[part] = stored.sum(-1)
        negentropy[part] = torch.linalg.vecdot(stored, logs.masked_fill(stored == 0, 0.0))
    return Reference(probabilities, mass, negentropy)


def losses_and_divergences(
    logits: Tensor, targets: Tensor, reference: Reference
) -> tuple[Tensor, Tensor]:
    """Next-token loss, and KL divergence from a reference, at each position, in one reading.

    KL(p ‖ q) = sum p log p - sum p z + log sum exp z for the logits z of q: all that is new for
    each q is one product and one sum of exponentials.

    Args:
        logits: Scores of the next token, shape (tokens, vocabulary), any float dtype.
        targets: The tokens that came, shape (tokens,), int64.
        reference: Of as many tokens.

    Returns:
        Losses and divergences in nats, both (tokens,) float32, at least 0. Divergences are within
        1e-3 relative of those of unrounded probabilities (`token_divergences`) or, where they are
        small, within 2e-5 nats; 1e-4 where logits are as far from 0 as 100.
    """
    losses, divergences = (logits.new_empty(len(logits), dtype=torch.float32) for _ in range(2))
    for part in _chunks(logits, _SMALL_CHUNK_BYTES):
        scores = logits[part].float()
        total = scores.logsumexp(-1)
        losses[part] = total - scores.gather(1, targets[part, None])[:, 0]
        expected = torch.linalg.vecdot(reference.probabilities[part].float(), scores)
        divergences[part] = reference.negentropy[part] - expected + reference.mass[part] * total
    return losses, divergences.clamp_(min=0.0)


def _chunks(logits: Tensor, cpu_bytes: int | None = None) -> Iterator[slice]:
    tokens, vocabulary = logits.shape
    limit = cpu_bytes if cpu_bytes and logits.device.type == "cpu" else CHUNK_BYTES
    size = max(1, limit // (4 * vocabulary))
    for start in range(0, tokens, size):
        yield slice(start, start + size)
