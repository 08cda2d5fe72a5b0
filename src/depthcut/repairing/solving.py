"""Places solved for in order: sums over a text, and the solution that held-out text likes best."""

import math
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
from depthcut.repairing.changes import Change
from depthcut.repairing.layers import Layers
from depthcut.repairing.merging import STRENGTHS, Merge
from depthcut.repairing.methods import Aim, Method, Solution, Sums, find_method
from depthcut.repairing.passes import Passes
from depthcut.repairing.places import Place, entries_in
from depthcut.settings import RepairSettings
from depthcut.text.sequences import Batch, padded

_CPU_BATCH_TOKENS = 1024
SHARE = 0.4
"""Of the free memory that sums, and states on the way, may take each."""


class Solved(NamedTuple):
    """Tensors of a layer, new."""

    entries: Mapping[str, TensorEntry]
    """Where the cut checkpoint holds them, by their names in the model."""
    tensors: dict[str, Tensor]
    """By the same names, in the checkpoint's dtypes."""
    before: float
    """Error on held-out text."""
    after: float
    solution: Solution | None = None
    """They come from; None: from a merge."""
    strength: float | None = None
    """Of a merge."""


def helped(solved: Sequence[Solved]) -> bool:
    """Whether states of held-out text are nearer after the last change than before the first."""
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
    """Each place with what was found there; of a layer behind a block nothing if it did not help.

    What was found is put into the layers.

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
    size = settings.batch_size or _batch_size(loaded, [*fitted, *held_out])
    parts = [(batch, False) for batch in _batches(fitted, size)]
    parts += [(batch, True) for batch in _batches(held_out, size)]
    method = find_method(settings.method)
    memory_bytes = int(free_memory_bytes(loaded.device) * SHARE)
    with progress("repair", _layer_tokens(parts, places, plan) / len(loaded.layers)) as advance:
        passes = Passes(
            layers,
            [batch for batch, _ in parts],
            plan.kept_layers,
            memory_bytes,
            lambda tokens: advance(tokens / len(loaded.layers)),
        )
        text = _Text(layers, passes, parts, method.aim)
        for place in places:
            layer = plan.kept_layers.index(place.layer)
            entries = [entries_in(checkpoint, place, each, layer) for each in place.changes]
            merge = place.changes[0]
            if isinstance(merge, Merge):
                solved = [_merged(text, place, merge, entries[0])]
            else:
                solved = _solved(text, place, entries, method)
            if not place.needed and not helped(solved):
                layers.take_back(place.layer)
                solved = []
            yield place, solved


def _layer_tokens(
    parts: Sequence[tuple[Batch, bool]], places: Sequence[Place], plan: Plan
) -> float:
    """How many tokens go through layers of both models, each counted once a layer."""
    first, last = places[0].layer, places[-1].layer
    passed = max(places[-1].depth, last + 1)
    passed += sum(first <= each < last for each in plan.kept_layers)
    found = 0
    for batch, held in parts:
        found += int(batch.mask.sum()) * (passed + sum(place.passes(held=held) for place in places))
    return found


@dataclass(frozen=True)
class _Text:
    """What both models read."""

    layers: Layers
    passes: Passes
    parts: Sequence[tuple[Batch, bool]]
    """Its batches, and whether they are held out."""
    aim: Aim

    def sums(self, place: Place, change: Change, *, judging: bool) -> dict[bool, Sums]:
        """Over the sequences that are held out (True), and unless only judging those fitted."""
        sums: dict[bool, Sums] = {}
        numbers = [number for number, (_, held) in enumerate(self.parts) if held or not judging]
        seen = self.passes.over(place.layer, place.depth, change, numbers=numbers)
        for number, each in zip(numbers, seen, strict=True):
            _, held = self.parts[number]
            if held not in sums:
                hidden, columns = each.target.shape[1], each.given.shape[1]
                sums[held] = Sums.empty(hidden, columns, each.given.device)
            sums[held].add(each, self.aim)
        for both in sums.values():
            if not (bool(torch.isfinite(both.wanted).all()) and math.isfinite(both.square)):
                raise SettingsError(
                    f"the states beside {layers_in_words([place.block])} are no numbers in this "
                    "dtype: load the model with --dtype float32"
                )
        return sums

    def put(self, place: Place, tensors: Mapping[str, Tensor]) -> None:
        """Change the layer, for all that comes."""
        self.passes.untouched_to(place.layer + 1)
        self.layers.put(place.layer, tensors)


def _solved(
    text: _Text, place: Place, entries: Sequence[Mapping[str, TensorEntry]], method: Method
) -> list[Solved]:
    """What each solve of a place gave: the error after one is that before the next."""
    assert method.solve is not None
    found: list[Solved] = []
    now: dict[str, Tensor] = {}
    rounds = [*zip(place.changes, entries, strict=True)]
    if not place.exact:  # one more, over what is held out, to see what it did
        rounds.append(rounds[-1])
    for number, (change, its) in enumerate(rounds, start=1):
        judging = number > len(place.changes)
        sums = text.sums(place, change, judging=judging)
        held_out = sums[True]
        now = {name: read_weight(entry) for name, entry in its.items()} | now
        matrix = change.matrix(now).to(held_out.inputs.device)
        before = held_out.error(matrix)
        if found:
            found[-1] = found[-1]._replace(after=before)
        if judging:
            break
        offered = []
        for solution in method.solve(sums[False], matrix):
            tensors = _rounded(change, solution, now)
            after = held_out.error(change.matrix(tensors).to(matrix.device))
            offered.append(Solved(its, tensors, before, after, solution))
        found.append(min(offered, key=lambda each: each.after))
        text.put(place, found[-1].tensors)
        now |= found[-1].tensors
    if method.rounds == 1:
        return found
    best = min(found, key=lambda each: each.after)
    text.put(place, best.tensors)
    return [best._replace(before=found[0].before)]


def _merged(text: _Text, place: Place, merge: Merge, entries: Mapping[str, TensorEntry]) -> Solved:
    """The strength that held-out text likes best, put into the layer."""

    def error() -> float:
        held_out = text.sums(place, merge, judging=True)[True]
        return held_out.error(held_out.wanted)

    before, errors = error(), {}
    for strength in STRENGTHS:
        text.put(place, merge.merged(strength))
        errors[strength] = error()
    best = min(STRENGTHS, key=lambda each: errors[each])
    tensors = merge.merged(best)
    text.put(place, tensors)
    return Solved(entries, tensors, before, errors[best], strength=best)


def _rounded(change: Change, solution: Solution, now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A solution as the checkpoint can hold it."""
    made = change.tensors(solution.matrix)
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
