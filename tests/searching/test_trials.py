import itertools
import math
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from depthcut.errors import SettingsError
from depthcut.model.kept_states import KeptStates
from depthcut.model.loading import from_memory
from depthcut.model.skipping import Kept, Losses, Skipper, Work, in_order, skipping
from depthcut.records import Search, read_record, write_record
from depthcut.searching.journal import Journal
from depthcut.searching.trials import BudgetSpentError, Removed, Trials
from depthcut.text.sequences import Batch, padded
from tests.searching.searches_for_tests import layers_of, search, some_text, tiny, trials


class Noisy:
    """Stands in for a skipper: losses of a stack are normal, with a mean of what it lacks."""

    def __init__(
        self, means: dict[Removed, float], *, noise: float = 1.0, batches: int = 40, seed: int = 0
    ) -> None:
        self.whole: Kept = tuple(range(9))
        self.batches: list[Batch] = [padded([torch.zeros(5, dtype=torch.int64)] * 4)] * batches
        self.work, self.base = Work(0, 0), self.whole
        self._means, self._noise, self._seed = means, noise, seed

    def measure_each(self, stacks: Iterable[Kept], number: int) -> Iterator[tuple[Kept, Losses]]:
        for stack in in_order(stacks):
            removed = tuple(layer for layer in self.whole if layer not in stack)
            draw = random.Random(f"{self._seed} {number} {removed}")
            values = [self._means.get(removed, 0.0) + draw.gauss(0, self._noise) for _ in range(4)]
            column = torch.tensor(values, dtype=torch.float64)
            yield stack, Losses(column, column, column)


def noisy(means: dict[Removed, float], **options: object) -> Trials:
    given = {name: options.pop(name) for name in ("noise", "batches", "seed") if name in options}
    skipper = Noisy(means, **given)  # type: ignore[arg-type]
    return Trials(skipper, Journal(None, ""), **options)  # type: ignore[arg-type]


SINGLES = {(layer,): 0.3 * layer for layer in range(9)}


def test_one_step_takes_the_layer_passes_of_theory() -> None:
    with trials(layers=30, error_rate=0) as (real, skipper):
        sequences = real.sequences
        first = real.best([(layer,) for layer in range(30)])
        passes = skipper.work.layers / sequences
        # Each candidate from its cut on, and the untouched model once.
        assert passes == 30 * 29 / 2 + 30
        assert skipper.work.heads == (30 + 1) * sequences
        real.start_from(first)
        real.best([tuple(sorted((*first, layer))) for layer in range(30) if layer not in first])
        assert skipper.work.layers / sequences - passes <= 29 * 28 / 2 + 29


@given(st.sets(st.frozensets(st.integers(0, 5), min_size=1), min_size=1, max_size=6))
def test_what_stacks_have_in_common_runs_once(stacks: set[frozenset[int]]) -> None:
    chosen = [tuple(sorted(stack)) for stack in stacks]
    beginnings = {stack[:length] for stack in chosen for length in range(1, len(stack) + 1)}
    way_of_the_base = {tuple(range(length)) for length in range(1, 6)}
    with trials() as (_, skipper):
        skipper.measure(skipper.whole, 0)
        before = skipper.work.layers
        found = dict(skipper.measure_each(chosen, 0))
        # A last layer of the base has no state behind it that is kept.
        ends = [skipper.whole] if skipper.whole in beginnings else []
        expected = len(beginnings - way_of_the_base - {skipper.whole}) + len(ends)
        assert (skipper.work.layers - before) == 4 * expected
        for stack, losses in found.items():
            alone = skipper.measure(stack, 0)
            assert all(torch.equal(a, b) for a, b in zip(losses, alone, strict=True))
        kept = {key[0] for key in skipper._kept if isinstance(key[0], tuple)}  # type: ignore[index]
        assert kept == way_of_the_base - {skipper.whole}


def test_no_state_stays_of_a_measurement_that_was_broken_off() -> None:
    with trials() as (_, skipper):
        skipper.base = (0, 1, 2)
        measured = skipper.measure_each([(1, 2, 3, 4), (1, 2, 3, 5), (0, 2)], 0)
        for _ in range(2):
            next(measured)
        measured.close()
        kept = {key[0] for key in skipper._kept if isinstance(key[0], tuple)}  # type: ignore[index]
        assert kept == {(0,), (0, 1), (0, 1, 2)}  # the way of the base


def test_states_in_a_file_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = search("floating", drop="1:4")
    made: list[KeptStates] = []
    begin = KeptStates.__init__

    def without_memory(self: KeptStates, memory_bytes: int) -> None:
        begin(self, 0)
        made.append(self)

    monkeypatch.setattr(KeptStates, "__init__", without_memory)
    filed = search("floating", drop="1:4")
    for point, other in zip(usual.frontier, filed.frontier, strict=True):
        assert msgspec.structs.replace(point, cost=other.cost) == other  # what it took differs
    assert made[0]._file is not None
    assert not any(each.numel() for each in made[0]._memory.values())


def test_candidates_that_are_clearly_worse_are_given_up_and_the_best_is_found() -> None:
    wrong, read = 0, 0.0
    for seed in range(60):
        quick = noisy(SINGLES, seed=seed, noise=0.5)
        whole = noisy(SINGLES, seed=seed, noise=0.5, error_rate=0)
        wrong += quick.best(list(SINGLES)) != whole.best(list(SINGLES))
        assert whole.evaluations == 9
        read += quick.evaluations / 60
    assert wrong <= 3
    assert read < 4


def test_the_few_best_are_given_in_order() -> None:
    candidates = [*SINGLES, (0,), (3,)]
    few = noisy(SINGLES, noise=0.1).best_few(candidates, 3)
    assert few == [(0,), (1,), (2,)]
    everyone = noisy(SINGLES)
    assert everyone.best_few([(4,), (2,)], 5) == [(4,), (2,)]  # no choice, nothing is read
    assert everyone.evaluations == 0


def test_a_loss_that_is_no_number_is_the_worst() -> None:
    for error_rate in (0.0, 0.05):
        found = noisy({**SINGLES, (0,): math.nan}, noise=0.1, error_rate=error_rate)
        assert found.best(list(SINGLES)) == (1,)
        assert found.mean((0,)) == math.inf
        assert found.best([(0,), (8,)]) == (8,)


def test_a_reading_is_made_once() -> None:
    found = noisy(SINGLES)
    found.mean((1,), range(3))
    found.mean((1,), range(5))
    assert found.evaluations == 5 / 40
    found.ranked([(1,), (2,)], [0, 1])
    assert found.evaluations == 7 / 40


def test_a_sample_has_at_least_the_tokens_and_no_batch_twice() -> None:
    found, draw = noisy(SINGLES, batches=10), random.Random(0)
    assert found.sample(1000, draw) == list(range(10))
    assert len(found.sample(20, draw)) == 1
    assert len(found.sample(21, draw)) == 2
    drawn = [found.sample(100, draw) for _ in range(20)]
    assert all(each == sorted(set(each)) and len(each) == 5 for each in drawn)
    assert len(set(map(tuple, drawn))) > 10


def test_it_stops_before_the_reading_beyond_its_evaluations() -> None:
    found = noisy(SINGLES, batches=10, evaluations=2.5)
    with pytest.raises(BudgetSpentError):
        found.measure(list(SINGLES), range(10))
    assert found.evaluations == 2.5


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_of_no_sequences_is_refused(size: int) -> None:
    loaded = from_memory(tiny(), None)
    with (
        pytest.raises(SettingsError, match="at least 1"),
        skipping(loaded, some_text(), batch_size=size),
    ):
        pass


def test_what_the_journal_holds_is_within_the_minutes() -> None:
    with trials() as (before, skipper):
        whole = before.mean((1,))
        journal = Journal(None, "")
        for entry in before._journal.entries:
            journal.add(entry._replace(seconds=120.0))
        again = Trials(skipper, journal, minutes=1)
        assert again.mean((1,)) == whole
        with pytest.raises(BudgetSpentError):
            again.mean((2,))


def test_a_candidate_without_a_number_is_not_taken_and_leaves_a_record_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured = Skipper.measure_each

    def without_layer_3(
        skipper: Skipper, stacks: Iterable[Kept], number: int
    ) -> Iterator[tuple[Kept, Losses]]:
        for stack, found in measured(skipper, stacks, number):
            lost = stack != skipper.whole and 3 not in stack
            yield stack, Losses(*(each * math.nan for each in found)) if lost else found

    monkeypatch.setattr(Skipper, "measure_each", without_layer_3)
    found = search("greedy")
    assert all(3 not in removed for removed in layers_of(found))
    assert len(found.frontier[0].runners_up) == 4
    write_record(found, tmp_path / "search.json")
    assert read_record(tmp_path / "search.json", Search) == found
    with pytest.raises(SettingsError, match=r"without layer 3 \(1 layer\) is not a finite number"):
        search("block", drop=1, protect="0-2,4-5")


def test_it_stops_at_its_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    found = noisy(SINGLES, batches=100, minutes=1)
    with pytest.raises(BudgetSpentError):
        found.measure(list(SINGLES), range(100))
    assert 0 < found.evaluations < 1


@pytest.mark.parametrize("method", ["greedy", "floating", "evolve", "beam"])
def test_a_search_ends_at_its_budget_with_what_is_there(method: str) -> None:
    options = {"generations": 2, "offspring": 3}
    whole = search(method, drop="1:5", **options)
    assert whole.complete
    found = search(method, drop="1:5", evaluations=12, **options)
    assert not found.complete
    assert found.cost.evaluations <= 12
    assert 0 < len(found.frontier) < 5
    assert layers_of(found) == layers_of(whole)[: len(found.frontier)]


def test_a_budget_that_does_not_reach_the_first_reading_is_refused() -> None:
    with pytest.raises(SettingsError, match="raise --minutes or --evaluations"):
        search("greedy", evaluations=0.5)


def test_the_model_is_left_as_it_was() -> None:
    model, ids = tiny(), some_text().sequences[0][None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    search("ising", drop="1:3")
    assert not any("forward" in module.__dict__ for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
