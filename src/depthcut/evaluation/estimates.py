"""Means over tokens with their sampling error over sequences."""

import math

import torch
from torch import Tensor

from depthcut.errors import TextError
from depthcut.records import Estimate


def ratio_estimate(sums: Tensor, sizes: Tensor) -> Estimate:
    """The mean of a quantity over all units, with its standard error over sequences.

    Sequences are the sampling units and differ in length, so the mean over tokens is the
    ratio R = sum(sums) / sum(sizes), and its error comes from linearising the ratio (Cochran,
    Sampling Techniques, 1977, section 6.4): with e_i = sums_i - R * sizes_i over n sequences,
    stderr^2 = n / (n - 1) * sum(e_i^2) / sum(sizes)^2. With equal sizes this is the usual
    standard error of a mean. Sequences packed from one document are taken as independent,
    so on few long documents the error is a little too small.

    Args:
        sums: What the tokens of each sequence add up to, shape (sequences,).
        sizes: How many tokens (or bytes) each sequence has, same shape; zero is allowed.

    Raises:
        TextError: Fewer than two sequences have any size; their spread is unknown.
    """
    counted = sizes > 0
    sums, sizes = sums[counted].double(), sizes[counted].double()
    n = len(sums)
    if n < 2:
        raise TextError(
            f"{n} sequences of at least 2 tokens: at least 2 are needed to know the error; "
            "give more text, more --tokens or a shorter --context"
        )
    total = sizes.sum()
    mean = sums.sum() / total
    variance = n / (n - 1) * (sums - mean * sizes).square().sum() / total.square()
    return Estimate(value=mean.item(), stderr=math.sqrt(variance.item()))


def perplexity(loss: Estimate) -> Estimate:
    """exp(loss), its error by the delta method: exp(loss) * stderr."""
    value = math.exp(min(loss.value, 700.0))
    return Estimate(value=value, stderr=value * loss.stderr)


def bits_per_byte(loss_sums: Tensor, sizes_bytes: Tensor) -> Estimate:
    """Bits that the model needs per byte of text: comparable between tokenizers.

    Args:
        loss_sums: Nats that each sequence costs, shape (sequences,).
        sizes_bytes: UTF-8 bytes that those tokens stand for, same shape.

    Raises:
        TextError: As `ratio_estimate`.
    """
    return ratio_estimate(torch.as_tensor(loss_sums).double() / math.log(2), sizes_bytes)
