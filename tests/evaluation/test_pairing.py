import math
import subprocess
import sys
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthcut.errors import SettingsError
from depthcut.evaluation.estimates import ratio_estimate
from depthcut.evaluation.pairing import (
    Flips,
    average,
    flips,
    mcnemar,
    mean_estimate,
    normal_p,
    paired,
    pooled_estimate,
    pooled_paired,
    share_above_chance,
    share_of_means,
    weighted_paired,
)
from depthcut.records import Estimate

SCORE = st.sampled_from([0, 1]) | st.floats(-10, 10)
PAIRS = st.lists(st.tuples(SCORE, SCORE), min_size=2, max_size=40)
Items = list[tuple[float, float]]

# Kinds of items in a known world: how common each is, and how often a model has one right that
# was pruned little or much. Both models guess by the same coin in half of the cases.
SHARES, BEFORE, AFTER = [0.5, 0.3, 0.2], [0.95, 0.6, 0.3], [0.85, 0.45, 0.3]
TRUE_BEFORE, TRUE_AFTER = np.dot(SHARES, BEFORE).item(), np.dot(SHARES, AFTER).item()
CHANCE = 0.25


def sides(items: Items) -> tuple[list[float], list[float]]:
    return [before for before, _ in items], [after for _, after in items]


def scores_in_a_known_world(
    draws: int, items: int, seed: int
) -> list[tuple[list[float], list[float]]]:
    """Both models on so many random items, again and again: before and after of each draw."""
    random = np.random.default_rng(seed)
    kinds = random.choice(3, size=(draws, items), p=SHARES)
    coins = random.random((2, draws, items))
    coins[1] = np.where(random.random((draws, items)) < 0.5, coins[0], coins[1])
    before, after = coins[0] < np.array(BEFORE)[kinds], coins[1] < np.array(AFTER)[kinds]
    return list(zip(before.astype(float).tolist(), after.astype(float).tolist(), strict=True))


def coverage(found: list[Estimate], truth: float) -> float:
    """How often the 95 % interval holds the truth."""
    hits = [abs(each.value - truth) <= 1.959964 * each.stderr for each in found]
    return sum(hits) / len(hits)


def test_mean_and_error_by_hand() -> None:
    # Squares from the mean 0.75: 3 / 16 + 9 / 16 = 0.75; over 3, over 4.
    found = mean_estimate([1, 1, 0, 1])
    assert found.value == 0.75
    assert found.stderr == pytest.approx(math.sqrt(0.75 / 3 / 4))


def test_mean_and_error_are_those_of_lm_eval() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    values = np.random.default_rng(0).random(101).tolist()
    assert mean_estimate(values).value == pytest.approx(metrics.mean(values), rel=1e-14)
    assert mean_estimate(values).stderr == pytest.approx(metrics.mean_stderr(values), rel=1e-14)


def test_groups_count_as_lm_eval_counts_them() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    random = np.random.default_rng(1)
    groups = [(random.random(size) < 0.1 * size**0.5).astype(float) for size in (7, 30, 55)]
    sizes = [len(group) for group in groups]
    means = [metrics.mean(group) for group in groups]
    errors = [metrics.mean_stderr(group) for group in groups]
    found = pooled_estimate([group.tolist() for group in groups])
    assert found.value == pytest.approx(metrics.aggregate_subtask_metrics(means, sizes))
    assert found.stderr == pytest.approx(metrics.pooled_sample_stderr(errors, sizes))


def test_distance_between_subtasks_is_no_error() -> None:
    # Squares from each subtask's own mean: 0.5 twice; over 4 - 2, over 4.
    found = pooled_estimate([[1, 0], [11, 10]])
    assert found == Estimate(value=5.5, stderr=math.sqrt(1 / 2 / 4))
    assert mean_estimate([1, 0, 11, 10]).stderr > 5 * found.stderr


def test_a_subtask_of_one_item_counts_in_the_mean_and_not_in_the_error() -> None:
    # One more item, and one more subtask whose spread is not known.
    found = pooled_estimate([[1, 0, 1], [1], []])
    assert found.value == 0.75
    assert found.stderr == pytest.approx(math.sqrt(2 / 3 / 2 / 4))


@pytest.mark.parametrize("groups", [[], [[]], [[1]], [[1], [0]]])
def test_an_error_that_cannot_be_known_is_refused(groups: list[list[float]]) -> None:
    with pytest.raises(SettingsError, match="at least 2 in a task are needed"):
        pooled_estimate(groups)


def test_paired_difference_by_hand() -> None:
    # Differences -1, 0, 0, 1, -1: mean -0.2, squares 0.64 + 0.04 + 0.04 + 1.44 + 0.64 = 2.8.
    found = paired([1, 1, 0, 0, 1], [0, 1, 0, 1, 0])
    assert found.value == pytest.approx(-0.2)
    assert found.stderr == pytest.approx(math.sqrt(2.8 / 4 / 5))


@given(PAIRS)
def test_swapping_the_models_negates_the_difference(items: Items) -> None:
    before, after = sides(items)
    there, back = paired(before, after), paired(after, before)
    assert back.value == -there.value
    assert back.stderr == there.stderr


@given(PAIRS, st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_count(items: Items, random: Random) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    found = paired(*sides(shuffled))
    assert found.value == pytest.approx(paired(*sides(items)).value)
    assert found.stderr == pytest.approx(paired(*sides(items)).stderr)


@given(PAIRS)
def test_every_item_twice_halves_the_variance_but_for_one_degree_of_freedom(items: Items) -> None:
    n, once, twice = len(items), paired(*sides(items)), paired(*sides(items * 2))
    assert twice.value == pytest.approx(once.value)
    assert twice.stderr**2 == pytest.approx(
        once.stderr**2 / 2 * (n - 1) / (n - 0.5), rel=1e-9, abs=1e-20
    )


@given(PAIRS)
def test_paired_error_is_that_of_the_covariance(items: Items) -> None:
    before, after = sides(items)
    covariance = np.cov(before, after)
    variance = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / len(items)
    assert paired(before, after).stderr ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-12)


@given(PAIRS)
def test_one_subtask_pooled_is_the_task_itself(items: Items) -> None:
    before, after = sides(items)
    assert pooled_paired([before], [after]) == paired(before, after)


def test_pooled_difference_is_weighted_by_items() -> None:
    found = pooled_paired([[0, 0], [1, 1, 1, 1]], [[1, 0], [1, 0, 1, 1]])
    assert found.value == pytest.approx((1 - 1) / 6)
    assert found.stderr == pytest.approx(math.sqrt((0.5 + 0.75) / 4 / 6))


def test_weighted_difference_by_hand() -> None:
    # Differences 1, 0, 2 with weights 1, 2, 1: mean 3 / 4; weighted residuals 1/4, -3/2, 5/4.
    found = weighted_paired([1, 1, 1], [2, 1, 3], [1, 2, 1])
    assert found.value == pytest.approx(0.75)
    assert found.stderr == pytest.approx(math.sqrt(3 / 2 * (1 / 16 + 9 / 4 + 25 / 16)) / 4)


def test_weighted_difference_is_the_ratio_estimate_of_texts() -> None:
    random = np.random.default_rng(0)
    before, after, words = random.random((3, 40))
    words = np.floor(words * 100)
    found = weighted_paired(before.tolist(), after.tolist(), words.tolist())
    expected = ratio_estimate(torch.tensor((after - before) * words), torch.tensor(words))
    assert found.value == pytest.approx(expected.value)
    assert found.stderr == pytest.approx(expected.stderr)


@given(PAIRS, st.sampled_from([1, 3]))
def test_equal_weights_are_none(items: Items, weight: int) -> None:
    before, after = sides(items)
    found = weighted_paired(before, after, [weight] * len(items))
    assert found.value == pytest.approx(paired(before, after).value, abs=1e-12)
    assert found.stderr == pytest.approx(paired(before, after).stderr, abs=1e-12)


def test_items_without_weight_change_nothing() -> None:
    found = weighted_paired([1, 1, 7, 1], [2, 1, 0, 3], [1, 2, 0, 1])
    assert found == weighted_paired([1, 1, 1], [2, 1, 3], [1, 2, 1])
    with pytest.raises(SettingsError, match="1 items with any words"):
        weighted_paired([1, 1], [2, 1], [1, 0])
    with pytest.raises(ValueError, match="2 scores and 1 weights"):
        weighted_paired([1, 1], [2, 1], [1])


@pytest.mark.parametrize("of", [paired, flips])
def test_other_items_cannot_be_paired(of: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="2 and 3 scores: expected the same items"):
        of([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="shorter"):
        pooled_paired([[1, 0], [1, 0]], [[1, 0]])


def test_tasks_have_the_same_weight_whatever_their_errors() -> None:
    found = average([Estimate(value=0.2, stderr=0.03), Estimate(value=0.6, stderr=0.04)])
    assert found.value == pytest.approx(0.4)
    assert found.stderr == pytest.approx(0.025)
    with pytest.raises(ValueError, match="no estimates"):
        average([])


def test_average_of_one_task_is_that_task() -> None:
    assert average([Estimate(value=0.2, stderr=0.03)]) == Estimate(value=0.2, stderr=0.03)


def test_all_above_chance_is_left_of_an_equal_model_without_error() -> None:
    answers = [1, 0, 1, 1, 1, 0, 1, 1] * 10
    assert share_above_chance(answers, answers, 0.25) == Estimate(value=1, stderr=0)


def test_nothing_above_chance_is_left_of_a_guess() -> None:
    before, after = [1, 1, 1, 1, 1, 1, 1, 0] * 10, [1, 0, 0, 0, 1, 0, 0, 0] * 10
    found = share_above_chance(before, after, 0.25)
    assert found is not None
    assert found.value == pytest.approx(0)
    # The share is the second mean over a constant then, to first order.
    assert found.stderr == pytest.approx(mean_estimate(after).stderr / (7 / 8 - 0.25))


def test_error_of_the_share_is_the_delta_method_with_the_covariance() -> None:
    before, after = scores_in_a_known_world(1, 300, seed=5)[0]
    found = share_above_chance(before, after, CHANCE)
    assert found is not None
    above, left = np.mean(before) - CHANCE, np.mean(after) - CHANCE
    slopes = np.array([-left / above**2, 1 / above])
    assert found.value == pytest.approx(left / above)
    assert found.stderr**2 == pytest.approx(slopes @ np.cov(before, after) @ slopes / 300)


@pytest.mark.parametrize(("right", "known"), [(25, False), (33, False), (36, True)])
def test_there_is_no_share_of_a_model_that_does_not_clearly_beat_chance(
    right: int, known: bool
) -> None:
    # Of 100 items with chance 0.25, two standard errors are about 0.095.
    before = [1] * right + [0] * (100 - right)
    assert (share_above_chance(before, before, 0.25) is not None) == known


def test_a_model_at_chance_without_any_error_has_no_share() -> None:
    exact = Estimate(value=0.5, stderr=0)
    assert share_of_means(exact, exact, Estimate(value=0, stderr=0), 0.5) is None


# Coverage is counted over 4000 draws, so its own error is 0.35 %; expected are a little under
# 95 %, as a normal interval with an estimated error has it.
LEAST, MOST = 0.935, 0.96


def test_intervals_of_paired_differences_hold_the_truth_as_often_as_they_say() -> None:
    found = [paired(*draw) for draw in scores_in_a_known_world(4000, 200, seed=1)]
    assert LEAST < coverage(found, TRUE_AFTER - TRUE_BEFORE) < MOST
    spread = np.std([each.value for each in found])
    assert np.mean([each.stderr for each in found]) == pytest.approx(spread, rel=0.05)


def test_unpaired_errors_would_hold_it_too_often() -> None:
    # What pairing is for: the known world is one in which it matters.
    found = []
    for before, after in scores_in_a_known_world(1000, 200, seed=1):
        each = mean_estimate(before), mean_estimate(after)
        error = math.hypot(each[0].stderr, each[1].stderr)
        found.append(Estimate(value=each[1].value - each[0].value, stderr=error))
    assert coverage(found, TRUE_AFTER - TRUE_BEFORE) > 0.98


def test_intervals_of_averages_hold_the_truth_as_often_as_they_say() -> None:
    tasks = [scores_in_a_known_world(4000, items, seed=items) for items in (60, 100, 240)]
    draws = list(zip(*tasks, strict=True))
    differences = [average([paired(*task) for task in draw]) for draw in draws]
    assert LEAST < coverage(differences, TRUE_AFTER - TRUE_BEFORE) < MOST
    values = [average([mean_estimate(after) for _, after in draw]) for draw in draws]
    assert LEAST < coverage(values, TRUE_AFTER) < MOST


def test_intervals_of_pooled_differences_hold_the_truth_as_often_as_they_say() -> None:
    # A small subtask and a large one, from the same world.
    draws = scores_in_a_known_world(4000, 200, seed=2)
    found = [
        pooled_paired([before[:20], before[20:]], [after[:20], after[20:]])
        for before, after in draws
    ]
    assert LEAST < coverage(found, TRUE_AFTER - TRUE_BEFORE) < MOST


def test_intervals_of_the_share_above_chance_hold_the_truth_as_often_as_they_say() -> None:
    draws = scores_in_a_known_world(4000, 200, seed=3)
    found = [share_above_chance(*draw, CHANCE) for draw in draws]
    known = [each for each in found if each is not None]
    assert len(known) == len(found)
    assert LEAST < coverage(known, (TRUE_AFTER - CHANCE) / (TRUE_BEFORE - CHANCE)) < MOST


def test_intervals_of_the_share_of_averages_hold_the_truth_as_often_as_they_say() -> None:
    tasks = [scores_in_a_known_world(4000, items, seed=items) for items in (70, 150)]
    found = []
    for draw in zip(*tasks, strict=True):
        before, after = ([mean_estimate(task[side]) for task in draw] for side in (0, 1))
        difference = average([paired(*task) for task in draw])
        # Chance differs by task; of the means it is the mean.
        found.append(share_of_means(average(before), average(after), difference, CHANCE))
    known = [each for each in found if each is not None]
    assert len(known) == len(found)
    assert LEAST < coverage(known, (TRUE_AFTER - CHANCE) / (TRUE_BEFORE - CHANCE)) < MOST


@pytest.mark.parametrize(
    ("gained", "lost"), [(0, 1), (0, 6), (1, 5), (3, 3), (4, 5), (12, 30), (480, 600), (4801, 5200)]
)
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(gained, gained + lost, 0.5).pvalue
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 6) == 2 / 64
    assert mcnemar(1, 5) == 2 * (1 + 6) / 64
    assert mcnemar(3, 3) == 1
    with pytest.raises(ValueError, match="-1 gained and 2 lost"):
        mcnemar(-1, 2)


def test_mcnemar_of_very_many_changes_is_a_number() -> None:
    assert mcnemar(10_000, 10_000) == 1
    assert mcnemar(0, 20_000) == 0  # less than a float can say
    assert 0 < mcnemar(9_500, 10_500) < 1e-11


def test_mcnemar_keeps_to_its_level_where_nothing_is_lost() -> None:
    # Exact means conservative: with few changes never more false alarms than 5 %.
    changes = np.random.default_rng(0).binomial(25, 0.5, size=4000).tolist()
    assert 0.02 < np.mean([mcnemar(gained, 25 - gained) < 0.05 for gained in changes]) < 0.06


def test_normal_p_is_that_of_tables() -> None:
    assert normal_p(Estimate(value=1.959964, stderr=1)) == pytest.approx(0.05, abs=1e-7)
    assert normal_p(Estimate(value=-0.02, stderr=0.01)) == pytest.approx(0.0455, abs=1e-4)
    assert normal_p(Estimate(value=0, stderr=1)) == 1


def test_normal_p_without_an_error_is_certain() -> None:
    assert normal_p(Estimate(value=0, stderr=0)) == 1
    assert normal_p(Estimate(value=0.1, stderr=0)) == 0


def test_flips_are_the_items_that_changed() -> None:
    assert flips([1, 1, 0, 0, 1], [0, 1, 0, 1, 0]) == Flips(gained=(3,), lost=(0, 4))
    assert flips([True, False], [False, False]) == Flips(gained=(), lost=(0,))


def test_scores_between_right_and_wrong_do_not_flip() -> None:
    assert flips([1, 0.5], [0, 1]) is None


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, depthcut.evaluation.pairing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
