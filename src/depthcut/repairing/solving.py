"""Places solved for in order: sums over a text, and the solution that held-out text likes best."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from depthcut.checkpoint.folder import Checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import SettingsError
from depthcut.model.batching import fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.memory import free_memory_bytes
from depthcut.model.stored_weights import read_weight
from depthcut.progress import progress
from depthcut.records import Plan, layers_in_words
from depthcut.repairing.layers import Layers
from depthcut.repairing.methods import Solution, Solve, Sums, find_method
from depthcut.repairing.passes import Passes
from depthcut.repairing.places import Place, entries_in
from depthcut.repairing.projections import Joined
from depthcut.settings import RepairSettings
from depthcut.text.sequences import Batch, padded

_CPU_BATCH_TOKENS = 1024
SHARE = 0.4
"""Of the free memory that sums, and states on the way, may take each."""


class Solved(NamedTuple):
    """Projections of a layer, solved for."""

    entries: Mapping[str, TensorEntry]
    """Where the cut checkpoint holds them, by their names in the model."""
    tensors: dict[str, Tensor]
    """By the same names, in the checkpoint's dtypes."""
    solution: Solution
    before: float
    """Error on held-out text."""
    after: float


def helped(solved: Sequence[Solved]) -> bool:
    """Whether the states of held-out text are nearer after the last solve than before the first."""
    return bool(solved) and solved[-1].after < solved[0].before


def solve_places(
    layers: Layers,
    plan: Plan,
    places: Sequence[Place],
    *,
    checkpoint: Checkpoint,
    fitted: Sequence[Tensor],
    held_out: Sequence[Tensor],
    settings: RepairSettings,
) -> Iterator[tuple[Place, list[Solved]]]:
    """Each place with what was solved there; of a layer behind a block nothing if it did not help.

    The solutions are put into the layers.

    Args:
        layers: The untouched model's.
        plan: Which layers go.
        places: In order.
        checkpoint: The cut one.
        fitted: Sequences that the sums are over.
        held_out: Those that judge.
        settings: The method and the size of batches.

    Raises:
        SettingsError: States are no numbers.
    """
    loaded = layers.loaded
    size = settings.batch_size or _batch_size(loaded, fitted)
    parts = [(batch, False) for batch in _batches(fitted, size)]
    parts += [(batch, True) for batch in _batches(held_out, size)]
    solve = find_method(settings.method).solve
    memory_bytes = int(free_memory_bytes(loaded.device) * SHARE)
    with progress("repair", _layer_tokens(parts, places, plan) / len(loaded.layers)) as advance:
        passes = Passes(
            layers,
            [batch for batch, _ in parts],
            plan.kept_layers,
            memory_bytes,
            lambda tokens: advance(tokens / len(loaded.layers)),
        )
        text = _Text(layers, passes, parts)
        for place in places:
            layer = plan.kept_layers.index(place.layer)
            entries = [entries_in(checkpoint, place, each, layer) for each in place.solves]
            solved = _at(text, place, entries, solve)
            if not place.before and not helped(solved):
                layers.take_back(place.layer)
                solved = []
            yield place, solved


def _layer_tokens(
    parts: Sequence[tuple[Batch, bool]], places: Sequence[Place], plan: Plan
) -> float:
    """How many tokens go through layers of both models, each counted once a layer."""
    first, last = places[0].layer, places[-1].layer
    passed = places[-1].depth + sum(first <= each < last for each in plan.kept_layers)
    found = 0
    for batch, held in parts:
        solves = sum(len(place.solves) + (held and not place.exact) for place in places)
        found += int(batch.mask.sum()) * (passed + solves)
    return found


@dataclass(frozen=True)
class _Text:
    """What both models read."""

    layers: Layers
    passes: Passes
    parts: Sequence[tuple[Batch, bool]]
    """Its batches, and whether they are held out."""

    def sums(self, place: Place, joined: Joined, *, judging: bool) -> dict[bool, Sums]:
        """Over the sequences that are held out (True), and unless only judging those fitted."""
        sums: dict[bool, Sums] = {}
        numbers = [number for number, (_, held) in enumerate(self.parts) if held or not judging]
        seen = self.passes.over(place.layer, place.depth, joined, numbers=numbers)
        for number, each in zip(numbers, seen, strict=True):
            _, held = self.parts[number]
            if held not in sums:
                hidden, columns = each.target.shape[1], each.given.shape[1]
                sums[held] = Sums.empty(hidden, columns, each.given.device)
            sums[held].add(*each)
        for both in sums.values():
            if not bool(torch.isfinite(both.inputs).all() and torch.isfinite(both.wanted).all()):
                raise SettingsError(
                    f"the states beside {layers_in_words([place.block])} are no numbers in this "
                    "dtype: load the model with --dtype float32"
                )
        return sums


def _at(
    text: _Text,
    place: Place,
    entries: Sequence[Mapping[str, TensorEntry]],
    solve: Solve,
) -> list[Solved]:
    """What each solve of a place gave: the error after one is that before the next."""
    found: list[Solved] = []
    now: dict[str, Tensor] = {}
    rounds = [*zip(place.solves, entries, strict=True)]
    if not place.exact:  # one more, over what is held out, to see what it did
        rounds.append(rounds[-1])
    for number, (joined, its) in enumerate(rounds, start=1):
        judging = number > len(place.solves)
        sums = text.sums(place, joined, judging=judging)
        held_out = sums[True]
        now = {name: read_weight(entry) for name, entry in its.items()} | now
        matrix = joined.matrix(now).to(held_out.inputs.device)
        before = held_out.error(matrix)
        if found:
            found[-1] = found[-1]._replace(after=before)
        if judging:
            break
        offered = []
        for solution in solve(sums[False], matrix):
            tensors = _rounded(joined, solution, now)
            after = held_out.error(joined.matrix(tensors).to(matrix.device))
            offered.append(Solved(its, tensors, solution, before, after))
        found.append(min(offered, key=lambda each: each.after))
        text.layers.put(place.layer, found[-1].tensors)
        now |= found[-1].tensors
    return found


def _rounded(joined: Joined, solution: Solution, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A solution as the checkpoint can hold it."""
    made = joined.tensors(solution.matrix)
    return {name: tensor.to("cpu", now[name].dtype) for name, tensor in made.items()}


def _batches(sequences: Sequence[Tensor], size: int) -> Iterator[Batch]:
    for start in range(0, len(sequences), size):
        yield padded(sequences[start : start + size])


def _batch_size(loaded: LoadedModel, sequences: Sequence[Tensor]) -> int:
    longest = max(len(each) for each in sequences)
    on_cpu = loaded.device.type == "cpu"
    return fitting_batch_size(
        loaded,
        longest,
        bytes_per_token=8 * 8 * loaded.facts.hidden_size,
        most=max(1, _CPU_BATCH_TOKENS // longest) if on_cpu else 32,
    )
