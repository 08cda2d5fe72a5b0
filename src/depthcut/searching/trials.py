"""Candidates tried on the text: what each costs, and which is best."""

import contextlib
import math
import random
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from depthcut.confidence import LEAST_OBSERVATIONS, worse
from depthcut.errors import SettingsError
from depthcut.model.ranks import ALONE, Ranks
from depthcut.model.skipping import Kept, Losses, Skipper, Work, in_order
from depthcut.progress import Advance
from depthcut.searching.journal import Entry, Gates, Journal
from depthcut.settings import Objective

Removed = tuple[int, ...]
"""Removed layers, ascending; or parts of layers, see `Sublayer.unit`."""
Reading = tuple[Removed, int]
"""A candidate and the number of the batch that it reads."""

_Column = tuple[float, ...]
_Found = tuple[tuple[_Column, _Column, _Column], Work]
"""Losses by sequence, and what they took."""
_Rows = tuple[tuple[_Column, ...], ...]
_FIRST_LOOK_SEQUENCES = LEAST_OBSERVATIONS
_LOOKS_GROW = 1.5


class BudgetSpentError(Exception):
    """The search has used the minutes or evaluations that it was given."""


class Trials:
    """Measures candidates on growing parts of the text; each part once."""

    def __init__(
        self,
        skipper: Skipper,
        journal: Journal,
        *,
        objective: Objective = "kl",
        error_rate: float = 0.05,
        minutes: float | None = None,
        evaluations: float | None = None,
        advance: Advance = lambda amount, note="": None,
        ranks: Ranks = ALONE,
        parts: bool = False,
    ) -> None:
        """Begin, or go on where the journal ends.

        Args:
            skipper: Runs the stacks.
            journal: What was measured before.
            objective: What is least in the best candidate.
            error_rate: Of each choice: the probability that a candidate is given up although it
                is the best on all of the text. 0: none is given up before the end.
            minutes: Stop after so many.
            evaluations: Stop after so many readings of the whole text by candidates.
            advance: Told how many sequences were read.
            ranks: The processes that share the batches; all ask for the same readings and know
                all losses, so that they decide alike. Their journals say the same.
            parts: Whether attention and MLP go one by one: all layers here are such parts then.
        """
        self.whole = tuple(range(2 * len(skipper.whole))) if parts else skipper.whole
        self._parts = parts
        self.sequences = sum(len(batch.ids) for batch in skipper.batches)
        self._skipper, self._journal, self._advance = skipper, journal, advance
        self._ranks = ranks
        self._column = Losses._fields.index({"kl": "divergence", "loss": "loss"}[objective])
        self._error_rate = error_rate
        self._minutes, self._evaluations = minutes, evaluations
        self._sizes = [len(batch.ids) for batch in skipper.batches]
        self._tokens = [int(batch.mask.sum()) for batch in skipper.batches]
        self._written = {(entry.removed, entry.batch): entry for entry in journal.entries}
        self._known: dict[Removed, dict[int, Losses]] = {}
        self._gates = {entry.batch: entry for entry in journal.gates}
        last = journal.last
        self._work = Work(last.layers, last.heads) if last else Work(0, 0)
        self._noted = Work(0, 0)
        self._started = time.monotonic() - (last.seconds if last else 0.0)
        self._read = 0
        self._last: Entry | Gates | None = None

    @property
    def batches(self) -> range:
        return range(len(self._sizes))

    @property
    def seconds(self) -> float:
        """Spent on this search, those before a kill included."""
        return time.monotonic() - self._started

    @property
    def spent(self) -> tuple[Work, float]:
        """Work and seconds up to the last reading; as the journal says, if it was found there."""
        last = self._last
        return (Work(last.layers, last.heads), last.seconds) if last else (Work(0, 0), 0.0)

    @property
    def evaluations(self) -> float:
        """Readings of the whole text by candidates."""
        return self._read / self.sequences

    def without(self, removed: Removed) -> tuple[int, ...]:
        """What is left of the stack."""
        return tuple(layer for layer in self.whole if layer not in removed)

    def _stack(self, removed: Removed) -> Kept:
        return self._skipper.without_parts(removed) if self._parts else self.without(removed)

    def start_from(self, removed: Removed) -> None:
        """Candidates to come share the beginning of this stack: its states are kept."""
        self._skipper.base = self._stack(removed)

    def losses(self, removed: Removed, batches: Iterable[int] | None = None) -> Losses:
        """What each sequence of some batches (default: all) says of a candidate."""
        numbers = list(self.batches if batches is None else batches)
        self.measure([removed], numbers)
        rows = [self._known[removed][number] for number in numbers]
        return Losses(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def scores(self, removed: Removed, batches: Iterable[int] | None = None) -> Tensor:
        """What is to be least, by sequence."""
        return self.losses(removed, batches)[self._column]

    def mean(self, removed: Removed, batches: Iterable[int] | None = None) -> float:
        """What is to be least, over some batches (default: the whole text).

        Returns:
            inf where it is no number.
        """
        found = self.scores(removed, batches).mean().item()
        return math.inf if math.isnan(found) else found

    def best(self, candidates: Iterable[Removed]) -> Removed:
        """The best candidate on the text; the others are read as far as it takes to tell.

        Returns:
            See `best_few`.
        """
        return self.best_few(candidates, 1)[0]

    def best_few(self, candidates: Iterable[Removed], count: int) -> list[Removed]:
        """The best candidates on the text; the others are read as far as it takes to tell.

        After some batches, and again each time half as many more are read, a candidate is given
        up if the confidence bound of its paired difference to the last of the best so far lies
        above 0: a sequential test, valid at all looks together, at the error rate over all
        candidates.

        Returns:
            At most so many of those that are left at the end, best first, of equals the first.
        """
        alive, read = list(dict.fromkeys(candidates)), 0
        others = len(alive) - count
        for look in self._looks():
            if len(alive) <= count:
                break
            self.measure(alive, range(read, look))
            read = look
            alive = self._not_worse(alive, range(read), count, others)
        if not read:
            return alive
        return sorted(alive, key=lambda each: self.mean(each, range(read)))[:count]

    def sample(self, tokens: int, generator: random.Random) -> list[int]:
        """Batches drawn without putting back, until they have so many tokens, or all."""
        drawn = generator.sample(self.batches, len(self.batches))
        found, total = [], 0
        for number in drawn:
            if total >= tokens:
                break
            found.append(number)
            total += self._tokens[number]
        return sorted(found)

    @property
    def first_look(self) -> range:
        """Batches that every candidate of a choice reads, unless there is only one."""
        return range(self._looks()[0])

    def ranked(self, candidates: Sequence[Removed], batches: Iterable[int]) -> list[Removed]:
        """Candidates by their mean over some batches, best first."""
        numbers = list(batches)
        self.measure(candidates, numbers)
        return sorted(candidates, key=lambda each: self.mean(each, numbers))

    def measured(self, count: int) -> list[Removed]:
        """All candidates of so many layers that have read the whole text, best first."""
        whole = [
            removed
            for removed, known in self._known.items()
            if len(removed) == count and len(known) == len(self._sizes)
        ]
        return sorted(whole, key=self.mean)

    def measure(self, candidates: Sequence[Removed], batches: Iterable[int]) -> None:
        """Have some candidates read some batches, those that they have not read.

        Raises:
            BudgetSpentError: Before the reading that would go beyond it. What the journal holds was
                within the minutes.
        """
        # In one order, whether found in the journal or not: a budget ends at the same reading.
        stacks = {self._stack(removed): removed for removed in candidates}
        ordered = [stacks[stack] for stack in in_order(stacks)]
        for numbers in self._at_once(batches):
            unread = [
                (removed, number)
                for number in numbers
                for removed in ordered
                if number not in self._known.get(removed, ())
            ]
            within = list(self._within_budget(unread))
            with contextlib.closing(self._entries(within)) as entries:
                for removed, number in within:
                    if (removed, number) not in self._written:
                        self._refuse_late()
                    self._last = next(entries)
                    self._read += self._sizes[number]
                    self._known.setdefault(removed, {})[number] = _losses(self._last)
                    self._advance(self._sizes[number])
            if len(within) < len(unread):
                raise BudgetSpentError

    def gate_gradients(self, batches: Iterable[int], *, directions: int, seed: int) -> Tensor:
        """How predictions change as layers are faded out, see `gates.gate_gradients`.

        Counts as a reading of the batches for the loss and for each direction.

        Returns:
            Shape (sequences of all the batches, 1 + directions, layers), float64.

        Raises:
            BudgetSpentError: Before the reading that would go beyond it.
        """
        found = []
        for numbers in self._at_once(batches):
            if self._evaluations is not None and self.evaluations >= self._evaluations:
                raise BudgetSpentError
            if any(number not in self._gates for number in numbers):
                self._refuse_late()
            own = {
                number: self._own_gates(number, directions, seed)
                for number in numbers
                if number not in self._gates and self._ranks.takes(number)
            }
            for number, (rows, work) in self._ranks.in_order(own).items():
                self._work = _sum(self._work, work)
                self._gates[number] = Gates(number, rows, *self._work, self.seconds)
                self._journal.add(self._gates[number])
            for number in numbers:
                self._last = self._gates[number]
                self._read += (1 + directions) * self._sizes[number]
                self._advance((1 + directions) * self._sizes[number])
                found.append(torch.tensor(self._gates[number].rows, dtype=torch.float64))
        return torch.cat(found)

    def _own_gates(self, number: int, directions: int, seed: int) -> tuple[_Rows, Work]:
        gradients = self._skipper.gate_gradients(number, directions=directions, seed=seed)
        before, self._noted = self._noted, self._skipper.work
        rows = tuple(tuple(map(tuple, each)) for each in gradients.tolist())
        return rows, _difference(self._noted, before)

    def _at_once(self, batches: Iterable[int]) -> Iterator[list[int]]:
        """Batches, as many as there are processes at a time."""
        numbers = list(dict.fromkeys(batches))
        for start in range(0, len(numbers), self._ranks.count):
            yield numbers[start : start + self._ranks.count]

    def _within_budget(self, readings: Iterable[Reading]) -> Iterator[Reading]:
        read = self._read
        for removed, number in readings:
            if self._evaluations is not None and read >= self._evaluations * self.sequences:
                return
            read += self._sizes[number]
            yield removed, number

    def _refuse_late(self) -> None:
        if self._minutes is not None and self._ranks.of_first(self.seconds >= 60 * self._minutes):
            raise BudgetSpentError

    def _entries(self, readings: Sequence[Reading]) -> Generator[Entry, None, None]:
        """From the journal, or measured now and written there: alone, each when it is asked for."""
        missing = [each for each in readings if each not in self._written]
        share = self._measured if self._ranks.count == 1 else self._measured_by_all
        with contextlib.closing(share(missing)) as found:
            for reading in readings:
                entry = self._written.get(reading)
                if entry is None:
                    losses, work = next(found)
                    self._work = _sum(self._work, work)
                    entry = Entry(*reading, *losses, *self._work, self.seconds)
                    self._journal.add(entry)
                yield entry

    def _measured(self, readings: Iterable[Reading]) -> Generator[_Found, None, None]:
        """What each reading, of batch by batch, finds and takes."""
        for number, some in groupby(readings, key=lambda reading: reading[1]):
            stacks = [self._stack(removed) for removed, _ in some]
            with contextlib.closing(self._skipper.measure_each(stacks, number)) as running:
                for _, found in running:
                    before, self._noted = self._noted, self._skipper.work
                    loss, divergence, last = (tuple(column.tolist()) for column in found)
                    yield (loss, divergence, last), _difference(self._noted, before)

    def _measured_by_all(self, readings: Iterable[Reading]) -> Generator[_Found, None, None]:
        """The same, each process its batches."""
        if self._ranks.rank:  # what all did alike before counts in the first process
            self._noted = self._skipper.work
        own = {
            place: reading
            for place, reading in enumerate(readings)
            if self._ranks.takes(reading[1])
        }
        found = dict(zip(own, self._measured(own.values()), strict=True))
        yield from self._ranks.in_order(found).values()

    def _not_worse(
        self, alive: Sequence[Removed], batches: Iterable[int], count: int, others: int
    ) -> list[Removed]:
        """Those that may yet be among the `count` best."""
        numbers = list(batches)
        means = {removed: self.mean(removed, numbers) for removed in alive}
        ranked = sorted(alive, key=means.__getitem__)
        last = self.scores(ranked[count - 1], numbers)
        left = set(ranked[:count])
        for removed in ranked[count:]:
            differences = self.scores(removed, numbers) - last
            if not self._error_rate or (
                math.isfinite(means[removed]) and not worse(differences, self._error_rate / others)
            ):
                left.add(removed)
        return [removed for removed in alive if removed in left]

    def _looks(self) -> list[int]:
        """Numbers of batches after which candidates may be given up."""
        looks, sequences, wanted = [], 0, float(_FIRST_LOOK_SEQUENCES)
        for number, size in enumerate(self._sizes, start=1):
            sequences += size
            if sequences >= wanted:
                looks.append(number)
                wanted = math.ceil(sequences * _LOOKS_GROW)
        return [*(look for look in looks if look < len(self._sizes)), len(self._sizes)]


def refuse_no_number(losses: Losses, what: str) -> None:
    """Refuse what cannot be compared, or written down; `what` names the model.

    Raises:
        SettingsError: A loss is not a finite number.
    """
    if not all(bool(column.isfinite().all()) for column in losses):
        raise SettingsError(
            f"the loss of {what} is not a finite number: choose --dtype bfloat16 or float32"
        )


def _losses(entry: Entry) -> Losses:
    columns = (entry.loss, entry.divergence, entry.last_divergence)
    return Losses(*(torch.tensor(column, dtype=torch.float64) for column in columns))


def _sum(work: Work, more: Work) -> Work:
    return Work(work.layers + more.layers, work.heads + more.heads)


def _difference(work: Work, less: Work) -> Work:
    return Work(work.layers - less.layers, work.heads - less.heads)
