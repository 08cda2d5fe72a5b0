"""When paired observations tell two candidates apart, however often one looks."""

import math

from torch import Tensor

LEAST_OBSERVATIONS = 24
"""Fewer say nothing: their spread and skewness are not known."""
_TIGHTEST_AT = 32
"""Observations at which the bound lies nearest to the mean."""


def lower_bound(differences: Tensor, error_rate: float) -> float:
    """What the mean of a stream of differences lies above, at all times together.

    After every observation one may look and stop, and the probability that the mean ever lies
    below the bound is at most the error rate, as observations grow many: the asymptotic
    confidence sequence of Waudby-Smith et al. (Time-uniform central limit theory,
    arXiv:2103.06476), of which one side is used. Two corrections for few observations are ours:
    the spread is widened as that of Student's t, and a tail to the left, of which few
    observations show little, counts twice in Johnson's expansion in the skewness. The tests hold
    the rate to what is stated for normal, exponential and Student's t differences, down to
    rates of 0.002; no test can know of a tail of which nothing was seen.

    Args:
        differences: In the order in which they came, independent, shape (observations,).
        error_rate: Between 0 and 1/2.

    Returns:
        -inf for fewer than `LEAST_OBSERVATIONS`, and for observations that are all the same.
    """
    count = len(differences)
    if count < LEAST_OBSERVATIONS:
        return -math.inf
    differences = differences.double()
    mean, spread = differences.mean().item(), differences.std().item()
    if spread == 0:
        return -math.inf
    both = 2 * error_rate  # of two sides
    scale = (-2 * math.log(both) + math.log(-2 * math.log(both) + 1)) / _TIGHTEST_AT
    grown = count * scale + 1
    errors = math.sqrt(2 * grown / (count * scale) * math.log(math.sqrt(grown) / both))
    cubes = (((differences - mean) / spread) ** 3).mean().item()
    skewness = cubes * math.sqrt(count * (count - 1)) / (count - 2)
    errors += 2 * max(0.0, -skewness) * (2 * errors**2 + 1) / (6 * math.sqrt(count))
    return mean - errors * spread * math.sqrt((count + 1) / (count - 3) / count)


def worse(differences: Tensor, error_rate: float) -> bool:
    """Whether it is settled that a candidate is worse than the best.

    Args:
        differences: Its scores less those of the best so far, on the same sequences, low is good.
        error_rate: Of this pair; of several candidates each takes its share.
    """
    return lower_bound(differences, error_rate) > 0
