"""Two models on the same items: differences with paired errors, exact tests, averages over tasks.

Every item of a task gives each model a score, 0 or 1 where it is right or wrong. Items are taken
as drawn independently from all questions that the task could have asked, so errors speak of those
questions, not only of the ones that were put. Plain Python: importing it loads no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from depthcut.errors import SettingsError
from depthcut.records import Estimate


@dataclass(frozen=True)
class Flips:
    """Items, by number from 0 and ascending, on which two models differ."""

    gained: tuple[int, ...]
    """Wrong before, right after."""
    lost: tuple[int, ...]


def mean_estimate(values: Sequence[float]) -> Estimate:
    """The mean over items and its standard error, s / sqrt(n).

    s^2 = sum((x - mean)^2) / (n - 1): what lm-eval calls mean_stderr.

    Raises:
        SettingsError: Fewer than two items; their spread is unknown.
    """
    return pooled_estimate([values])


def pooled_estimate(groups: Sequence[Sequence[float]]) -> Estimate:
    """The mean over the items of several subtasks, each item with the same weight.

    The error leaves out how far apart the subtasks are, as they are given and not drawn: with
    n_g items in each of k subtasks, n in all, stderr^2 = sum((x - mean of its subtask)^2) /
    (n - k) / n. This is lm-eval's pooled_sample_stderr, by which it counts groups such as MMLU,
    and also defined where a subtask has one item.

    Raises:
        SettingsError: No subtask has two items; their spread is unknown.
    """
    filled = [group for group in groups if group]
    items = sum(len(group) for group in filled)
    if items <= len(filled):
        raise SettingsError(
            f"{items} items in {len(filled)} tasks: at least 2 in a task are needed to know the "
            "error; raise --limit"
        )
    within = math.fsum(_squares(group) for group in filled)
    mean = math.fsum(value for group in filled for value in group) / items
    return Estimate(value=mean, stderr=math.sqrt(within / (items - len(filled)) / items))


def paired(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """The mean difference after - before, with the standard error of the paired differences.

    `mean_estimate` of after_i - before_i: what makes an item hard for both models cancels. Miller,
    Adding Error Bars to Evals (arXiv:2411.00640).

    Args:
        before: One score for each item.
        after: Of another model, on the same items in the same order.

    Raises:
        SettingsError: Fewer than two items.
        ValueError: Not as many scores of the one as of the other.
    """
    return mean_estimate(_differences(before, after))


def pooled_paired(
    befores: Sequence[Sequence[float]], afters: Sequence[Sequence[float]]
) -> Estimate:
    """As `paired`, over the items of several subtasks: `pooled_estimate` of the differences.

    Args:
        befores: For each subtask one score for each item.
        afters: The same of another model.

    Raises:
        SettingsError: No subtask has two items.
        ValueError: The numbers of subtasks or items differ.
    """
    both = zip(befores, afters, strict=True)
    return pooled_estimate([_differences(before, after) for before, after in both])


def weighted_paired(
    before: Sequence[float], after: Sequence[float], weights: Sequence[float]
) -> Estimate:
    """The difference of two means over words or bytes, paired over the items that hold them.

    With d_i = after_i - before_i and weights w_i, R = sum(w d) / sum(w) and, over n items,
    stderr^2 = n / (n - 1) * sum((w (d - R))^2) / sum(w)^2: a ratio, linearised (Cochran, Sampling
    Techniques, 1977, section 6.4). With equal weights this is `paired`.

    Args:
        before: The mean of each item: nats per word, bits per byte.
        after: Of another model, on the same items in the same order.
        weights: Words or bytes of each item; those with none do not count.

    Raises:
        SettingsError: Fewer than two items have any words.
        ValueError: The numbers of items differ.
    """
    differences = _differences(before, after)
    if len(differences) != len(weights):
        raise ValueError(f"{len(before)} scores and {len(weights)} weights: expected the same")
    counted = [pair for pair in zip(differences, weights, strict=True) if pair[1] > 0]
    n, total = len(counted), math.fsum(weight for _, weight in counted)
    if n < 2:
        raise SettingsError(
            f"{n} items with any words: at least 2 are needed to know the error; raise --limit"
        )
    mean = math.fsum(weight * difference for difference, weight in counted) / total
    squares = math.fsum((weight * (difference - mean)) ** 2 for difference, weight in counted)
    return Estimate(value=mean, stderr=math.sqrt(n / (n - 1) * squares) / total)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over tasks, each with the same weight: sum / k, error sqrt(sum(stderr^2)) / k.

    Serves scores and paired differences alike. Tasks ask different questions, so their errors are
    independent.

    Raises:
        ValueError: There is none.
    """
    if not estimates:
        raise ValueError("no estimates to average: expected at least one")
    return Estimate(
        value=math.fsum(each.value for each in estimates) / len(estimates),
        stderr=math.hypot(*(each.stderr for each in estimates)) / len(estimates),
    )


def share_above_chance(
    before: Sequence[float], after: Sequence[float], chance: float
) -> Estimate | None:
    """The share of the first model's score above chance that is left: `share_of_means` of one task.

    Raises:
        SettingsError: Fewer than two items.
        ValueError: Not as many scores of the one as of the other.
    """
    return share_of_means(
        mean_estimate(before), mean_estimate(after), paired(before, after), chance
    )


def share_of_means(
    before: Estimate, after: Estimate, difference: Estimate, chance: float
) -> Estimate | None:
    """(after - chance) / (before - chance): 1 nothing is lost, 0 guessing, below 0 worse than it.

    The error is by the delta method: with the share R, and the covariance of both means from
    var(difference) = var(before) + var(after) - 2 cov,
    stderr^2 = (var(after) - 2 R cov + R^2 var(before)) / (before - chance)^2.
    Serves one task, several pooled and an average over tasks, whose chance is the mean chance.

    Args:
        before: The first model's mean score.
        after: The other's.
        difference: after - before, with its paired error.
        chance: What guessing scores.

    Returns:
        None where the first model does not beat chance by more than two standard errors: a share
        of nothing.
    """
    above = before.value - chance
    if above <= 2 * before.stderr:
        return None
    share = (after.value - chance) / above
    variances = before.stderr**2, after.stderr**2
    # The same as above with cov put in; exact where both models are equal.
    variance = (1 - share) * (variances[1] - share * variances[0]) + share * difference.stderr**2
    return Estimate(value=share, stderr=math.sqrt(max(0.0, variance)) / above)


def normal_p(estimate: Estimate) -> float:
    """Two-sided p that the true value is 0, by the normal distribution: erfc(|z| / sqrt(2)).

    z = value / stderr. 1 where value and error are both 0.
    """
    if estimate.value == 0:
        return 1.0
    if estimate.stderr == 0:
        return 0.0
    return math.erfc(abs(estimate.value) / estimate.stderr / math.sqrt(2))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p that a changed item is as likely gained as lost: McNemar's test, exact.

    Of n = gained + lost items, as many as were gained under a fair coin: p = min(1, 2 P(X <= m)),
    m the smaller of both, X binomial (n, 1/2). McNemar, Psychometrika 12 (1947). Counted in whole
    numbers, so right to the last digit at any n; without a changed item p = 1.

    Raises:
        ValueError: A negative number.
    """
    if min(gained, lost) < 0:
        raise ValueError(f"{gained} gained and {lost} lost: expected numbers of items")
    changed = gained + lost
    ways = tail = 1
    for drawn in range(1, min(gained, lost) + 1):
        ways = ways * (changed - drawn + 1) // drawn
        tail += ways
    return min(1.0, 2 * tail / (1 << changed))


def flips(before: Sequence[float], after: Sequence[float]) -> Flips | None:
    """The items that one model has right and the other wrong.

    Returns:
        None where a score is neither 0 nor 1: then there is no right and wrong.

    Raises:
        ValueError: Not as many scores of the one as of the other.
    """
    changes = _differences(before, after)
    if not {0, 1}.issuperset(before) or not {0, 1}.issuperset(after):
        return None
    return Flips(
        gained=tuple(item for item, change in enumerate(changes) if change > 0),
        lost=tuple(item for item, change in enumerate(changes) if change < 0),
    )


def _differences(before: Sequence[float], after: Sequence[float]) -> list[float]:
    if len(before) != len(after):
        raise ValueError(f"{len(before)} and {len(after)} scores: expected the same items")
    return [new - old for old, new in zip(before, after, strict=True)]


def _squares(values: Sequence[float]) -> float:
    """Squared distances from the mean, summed."""
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values)
