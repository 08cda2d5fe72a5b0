"""One pass over a text: every criterion of every block and layer, with its sampling error."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from depthcut.errors import SettingsError
from depthcut.measures import DepthPairs
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.positions import learned_positions
from depthcut.model.ranks import ALONE, Ranks, all_ranks
from depthcut.model.states import reading_states
from depthcut.progress import progress
from depthcut.records import Origin, Scores, Survey, layers_in_words
from depthcut.settings import LoadSettings, SurveySettings, Tokens
from depthcut.surveying.criteria import Criterion, Needs, chosen, row_widths
from depthcut.surveying.inputs import survey_inputs
from depthcut.surveying.linear_maps import LinearMaps, linear_maps
from depthcut.surveying.pruneme import FullBatches, full_batches
from depthcut.surveying.scores import Rows, in_rows, scores_of
from depthcut.surveying.skipped_blocks import loss_rows
from depthcut.surveying.stopping import settling
from depthcut.surveying.sublayers import part_rows
from depthcut.surveying.weights import gradient_rows, refuse_weights, weight_rows
from depthcut.text.sequences import Batch, Sequences

_CHUNK_BYTES = {"cpu": 2 << 20, "mps": 2 << 20}
"""Of float32 states worked on at once: what a processor's cache holds."""
_GPU_CHUNK_BYTES = 1 << 30
ReadStates = Callable[[int], Sequence[Tensor]]
"""From the number of a batch to its states at each depth."""
_NORMS: tuple[str, Tokens] = ("", "all")
"""The key of their rows, where all rows are meant."""
_BY_TOKEN = ("pairs", "centred pairs")
_CPU_BATCH_TOKENS = 1024
"""More in one forward pass is slower on a CPU: memory is given back and fetched anew each time."""


class Source(Protocol):
    """Where a model's states and weights come from."""

    def refuse(self, criteria: Mapping[str, Criterion]) -> None:
        """Refuse criteria that need what is not there.

        Raises:
            SettingsError: With the criterion's name.
        """

    def batch_size(self, longest: int) -> int:
        """Sequences in a batch, whose longest has so many tokens."""

    def reading(self, batches: Sequence[Batch]) -> AbstractContextManager[ReadStates]:
        """A context that gives the states of a batch by its number, asked for in their order.

        At each depth (batch, positions, hidden); what stands at padding means nothing.
        """

    def weight_rows(self, sequences: int) -> Rows:
        """Scores by criteria that need the weights alone, asked for after the states."""


class _InMemory:
    """A model that is there as a whole."""

    def __init__(
        self, loaded: LoadedModel, settings: SurveySettings, criteria: Mapping[str, Criterion]
    ) -> None:
        self._loaded, self._settings, self._criteria = loaded, settings, criteria

    def refuse(self, criteria: Mapping[str, Criterion]) -> None:
        refuse_weights(self._loaded, criteria)

    def batch_size(self, longest: int) -> int:
        return choose_batch_size(self._loaded, self._settings, longest)

    @contextlib.contextmanager
    def reading(self, batches: Sequence[Batch]) -> Iterator[ReadStates]:
        with reading_states(self._loaded) as read:
            yield lambda number: read(batches[number])

    def weight_rows(self, sequences: int) -> Rows:
        return weight_rows(self._loaded.layers, sequences, self._criteria)


def survey_model(
    loaded: LoadedModel,
    sequences: Sequences,
    settings: SurveySettings,
    load: LoadSettings,
    *,
    source: Source | None = None,
) -> Survey:
    """Measure how redundant every layer and block of a model is.

    Runs the backbone once over the sequences. Each sequence is one observation, whatever its
    length: its last token, and the mean over its tokens. The record holds their mean and its
    standard error over sequences (0 where there is one sequence only). Of several processes each
    runs its batches, and all return the record. With a confidence the sequences come in random
    order, and those behind the one that settles the choice are not read.

    Args:
        loaded: The model.
        sequences: The text.
        settings: What is measured.
        load: How the model was loaded.
        source: Where its states and weights come from; default: the model itself, as it runs.

    Raises:
        SettingsError: No such criterion, sequences longer than the model's positions or shorter
            than a criterion needs, a batch size below 1, a largest block of no or all layers,
            more memory than there is, states that overflow the dtype, or a confidence that
            cannot be meant (`settling`).
        ArchitectureError: The model's layers cannot be found.
        RanksError: Of several processes one ended, or measures something else.
    """
    started = noted = time.monotonic()
    criteria, count = chosen(settings.criteria), len(sequences.sequences)
    longest = max(len(sequence) for sequence in sequences.sequences)
    limit = learned_positions(loaded)
    if limit is not None and longest > limit:
        raise SettingsError(
            f"sequences of {longest} tokens, but {loaded.facts.source} has {limit} positions: "
            "lower --context"
        )
    _refuse_short(criteria, longest)
    stopping = settling(settings, criteria, layers=len(loaded.layers), sequences=sequences)
    if stopping:
        sequences = stopping.sequences
    source = source or _InMemory(loaded, settings, criteria)
    source.refuse(criteria)
    largest = largest_block(settings, loaded)
    ranks = all_ranks()
    inputs = survey_inputs(loaded.facts.digest, sequences.facts.digest, settings, load)
    ranks.refuse_different(inputs, "model, text or setting")
    maps = linear_maps(loaded, criteria, largest=largest, sequences=count, ranks=ranks)
    batch_size = min(ranks.everywhere(source.batch_size(longest)))
    batches = tuple(sequences.batches(batch_size))
    full = full_batches(criteria, sequences=count, batch_size=batch_size)
    observations = Observations(len(loaded.layers), criteria, largest, maps, full)
    with (
        source.reading(batches) as read_states,
        full.watching(loaded) if full else contextlib.nullcontext(),
        progress("survey", sequences.facts.tokens) as advance,
    ):
        for number, batch in enumerate(batches):
            lengths = batch.mask.sum(dim=1).tolist()
            if ranks.takes(number):
                observations.add(read_states(number), lengths)
                due = time.monotonic() - noted >= 1
                advance(sum(lengths) * ranks.count, observations.best_block() if due else "")
                noted = time.monotonic() if due else noted
            else:
                observations.pass_over(lengths)
            if stopping and stopping.enough(len(lengths), observations.rows, ranks):
                break
        advance(0, observations.best_block())
    observations.finish(ranks)
    if stopping:
        sequences = stopping.read()
    observations.rows |= source.weight_rows(len(sequences.sequences))
    observations.rows |= gradient_rows(loaded, sequences, criteria, ranks)
    observations.rows |= part_rows(loaded, sequences, criteria, ranks, batch_size=batch_size)
    observations.rows |= loss_rows(
        loaded, sequences, criteria, ranks, largest=largest, batch_size=settings.batch_size
    )
    if not observations.finite():
        raise SettingsError(
            f"states or losses of {loaded.facts.source} overflow: choose --dtype bfloat16 or "
            "float32"
        )
    return Survey(
        origin=Origin.since(started, inputs=inputs),
        model=loaded.facts,
        text=sequences.facts,
        settings=settings,
        load=load,
        norms=observations.norms(),
        scores=tuple(observations.scores()),
        stopping=stopping.record() if stopping else None,
    )


def choose_batch_size(loaded: LoadedModel, settings: SurveySettings, longest: int) -> int:
    """The batch size asked for, or one whose states fit in memory.

    Raises:
        SettingsError: Less than 1.
    """
    if settings.batch_size is not None:
        if settings.batch_size < 1:
            raise SettingsError(f"batch size {settings.batch_size}: at least 1 is needed")
        return settings.batch_size
    element_bytes = next(loaded.model.parameters()).element_size()
    width = loaded.facts.hidden_size
    return fitting_batch_size(
        loaded,
        longest,
        bytes_per_token=(len(loaded.layers) + 1) * width * max(element_bytes, 2),
        most=max(1, _CPU_BATCH_TOKENS // longest) if loaded.device.type == "cpu" else 32,
    )


def largest_block(settings: SurveySettings, loaded: LoadedModel) -> int:
    """Layers in the largest block that costly criteria score: as asked, or half of all.

    Raises:
        SettingsError: None, or all of the layers.
    """
    layers = len(loaded.layers)
    if settings.largest_block is None:
        return max(1, layers // 2)
    if not 1 <= settings.largest_block < layers:
        raise SettingsError(
            f"largest-block {settings.largest_block}: {loaded.facts.source} has {layers} layers, "
            f"of which a block may hold 1 to {layers - 1}"
        )
    return settings.largest_block


def _refuse_short(criteria: Mapping[str, Criterion], longest: int) -> None:
    for name, criterion in criteria.items():
        if longest < criterion.least_tokens:
            raise SettingsError(
                f"{name} needs sequences of {criterion.least_tokens} tokens, the longest has "
                f"{longest}: raise --context, or leave it out of --criteria"
            )


class Observation(NamedTuple):
    """What some sequences of equal length say."""

    norms: Tensor
    """(sequences, depths) float64, mean over their tokens."""
    scores: dict[tuple[str, Tokens], Tensor]
    """By criterion and tokens: (sequences, entries) float64. Not of criteria that they are too
    short for."""


def observe(
    states: Sequence[Tensor], rows: slice, length: int, criteria: Mapping[str, Criterion]
) -> Observation:
    """Score some sequences of a batch, piece by piece; padding is never read.

    Args:
        states: At each depth, (batch, positions, hidden).
        rows: Which sequences.
        length: The tokens of each; those behind are padding.
        criteria: By which.
    """
    states = [state[rows, :length] for state in states]
    device = states[0].device
    if device.type == "mps":  # no float64 there
        device = torch.device("cpu")
    piece = max(1, _tokens_at_once(states) // len(states[0]))
    by_token = {name: each for name, each in criteria.items() if each.needs in _BY_TOKEN}
    centre = any(each.needs == "centred pairs" for each in by_token.values())
    means = [_mean(state.to(device)) for state in states] if centre else []
    norms: Tensor | float = 0.0
    sums: dict[str, Tensor | float] = dict.fromkeys(by_token, 0.0)
    last: dict[str, Tensor] = {}
    for start in range(0, length, piece):
        some = [state[:, start : start + piece].to(device) for state in states]
        given: dict[Needs, DepthPairs] = {"pairs": _pairs(some)}
        count = len(some[0])
        norms = norms + _by_sequence(given["pairs"].norms, count).sum(dim=1, dtype=torch.float64)
        if centre:
            given["centred pairs"] = _pairs(
                [state - mean for state, mean in zip(some, means, strict=True)]
            )
        for name, criterion in by_token.items():
            values = _by_sequence(criterion.function(given[criterion.needs]), count)
            sums[name] = sums[name] + values.sum(dim=1)
            last[name] = values[:, -1]
    scores: dict[tuple[str, Tokens], Tensor] = {}
    for name in by_token:
        scores[name, "last"] = last[name]
        scores[name, "all"] = torch.as_tensor(sums[name]) / length
    for name, criterion in criteria.items():
        if criterion.needs == "sequence" and length >= criterion.least_tokens:
            each_sequence = zip(*(state.to(device) for state in states), strict=True)
            scores[name, "all"] = torch.stack([criterion.function(each) for each in each_sequence])
    return Observation(torch.as_tensor(norms) / length, scores)


def _tokens_at_once(states: Sequence[Tensor]) -> int:
    chunk_bytes = _CHUNK_BYTES.get(states[0].device.type, _GPU_CHUNK_BYTES)
    return max(1, chunk_bytes // (4 * len(states) * states[0].shape[-1]))


def _groups(states: Sequence[Tensor], lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Neighbours of equal length, as many as are worked on at once."""
    at_once, start = _tokens_at_once(states), 0
    while start < len(lengths):
        length, stop = lengths[start], start + 1
        while (
            stop < len(lengths)
            and lengths[stop] == length
            and (stop + 1 - start) * length <= at_once
        ):
            stop += 1
        yield slice(start, stop), length
        start = stop


def _pairs(states: Sequence[Tensor]) -> DepthPairs:
    return DepthPairs.of([state.flatten(0, 1) for state in states])


def _by_sequence(values: Tensor, sequences: int) -> Tensor:
    """(tokens, entries) as (sequences, tokens of each, entries)."""
    return values.reshape(sequences, -1, values.shape[-1])


def _mean(states: Tensor) -> Tensor:
    return states.mean(dim=1, keepdim=True, dtype=torch.float64)


@dataclass
class Observations:
    """Those of all sequences so far, on their device until `finish`."""

    layers: int
    criteria: Mapping[str, Criterion]
    largest: int
    """Layers in the largest block that costly criteria score."""
    maps: LinearMaps | None = None
    batches: FullBatches | None = None
    rows: Rows = field(default_factory=dict)
    norm_rows: list[Tensor] = field(default_factory=list)
    batch: int = 0
    """The number of the next one."""
    ends: dict[int, dict[tuple[str, Tokens], int]] = field(default_factory=dict)
    """How many rows there were behind each batch that was read here."""

    def add(self, states: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Those of a batch: the states at each depth, (batch, positions, hidden)."""
        for some, length in _groups(states, lengths):
            found = observe(states, some, length, self.criteria)
            self.norm_rows.extend(found.norms)
            for key, values in found.scores.items():
                self.rows.setdefault(key, []).extend(values)
        if self.maps:
            self.maps.add(states, lengths)
            self.rows |= self.maps.rows
        if self.batches:
            self.batches.add(states, lengths)
            self.rows |= self.batches.rows
        self.ends[self.batch] = {key: len(rows) for key, rows in self._all_rows().items()}
        self.batch += 1

    def pass_over(self, lengths: Sequence[int]) -> None:
        """Leave the next batch to another process."""
        if self.maps:
            self.maps.pass_over(len(lengths))
        self.batch += 1

    def finish(self, ranks: Ranks = ALONE) -> None:
        """Bring all to the CPU, in one go: a GPU is not kept waiting on the way.

        Then the rows of all processes together, in the text's order.
        """
        for rows in self._all_rows().values():
            rows[:] = torch.stack(rows).cpu() if rows else ()
        if ranks.count == 1:
            return
        found: dict[int, dict[tuple[str, Tokens], Tensor]] = {}
        begun: dict[tuple[str, Tokens], int] = {}
        for number, ends in self.ends.items():
            found[number] = {
                key: torch.stack(rows[begun.get(key, 0) : ends[key]])
                for key, rows in self._all_rows().items()
                if ends.get(key, 0) > begun.get(key, 0)
            }
            begun = ends
        every = ranks.in_order(found)
        self.norm_rows.clear()
        self.rows = {(name, at): [] for name, each in self.criteria.items() for at in each.tokens}
        for some in every.values():
            for key, values in some.items():
                self._all_rows()[key].extend(values)

    def _all_rows(self) -> Rows:
        return {**self.rows, _NORMS: self.norm_rows}

    def finite(self) -> bool:
        return all(
            bool(torch.stack(rows).isfinite().all())
            for rows in (self.norm_rows, *self.rows.values())
        )

    def norms(self) -> tuple[float, ...]:
        return tuple(torch.stack(self.norm_rows).mean(dim=0).tolist())

    def best_block(self) -> str:
        """The best block of a quarter of the layers so far: "best: layers 12–19 (8 layers)".

        By the angle where it is asked for, else by the first criterion that has scores.
        """
        known = [name for name in ("angular", *self.criteria) if self.rows.get((name, "all"))]
        if not known:
            return ""
        mean = torch.stack(self.rows[known[0], "all"]).mean(dim=0).tolist()
        rows = in_rows(mean, row_widths(self.criteria[known[0]], self.layers, self.largest))
        size = min(max(1, self.layers // 4), max(len(row) for row in rows))
        starts = [start for start, row in enumerate(rows) if len(row) >= size]
        start = min(starts, key=lambda start: rows[start][size - 1])
        return f"best: {layers_in_words([(start, start + size)])}"

    def scores(self) -> Iterator[Scores]:
        for name, criterion in self.criteria.items():
            for tokens in criterion.tokens:
                rows = self.rows[name, tokens]
                widths = row_widths(criterion, self.layers, self.largest)
                yield scores_of(name, tokens, rows, widths)
