"""What a model loses without some of its layers, from states kept at the cut.

What enters the first removed layer does not depend on what is removed. Stacks that begin alike
run their common beginning once: the states where they part are kept while they are measured, and
those on the way of one stack (the base) for the stacks to come.
"""

import contextlib
from collections.abc import Container, Generator, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.model.batching import fitting_batch_size
from depthcut.model.gates import gate_gradients
from depthcut.model.kept_states import KeptStates
from depthcut.model.loading import LoadedModel
from depthcut.model.memory import free_memory_bytes
from depthcut.model.ranks import all_ranks
from depthcut.model.some_layers import RunSomeLayers, running_some_layers
from depthcut.model.sublayers import Silence, silencing
from depthcut.predictions import Reference, losses_and_divergences, reference_of
from depthcut.records import PARTS
from depthcut.text.sequences import Batch, Sequences

_CPU_BATCH_TOKENS = 1024
_KEPT_SHARE = 0.4
"""Of the free memory that kept states and distributions may take; beyond, they go to a file."""

Kept = tuple[int, ...]
"""The layers of a stack, ascending. Of L layers, L more than its index stands for a layer's
attention alone, 2 L more for its MLP alone."""


class Losses(NamedTuple):
    """What each sequence of a batch says of a stack, (sequences,) float64 on the CPU, in nats."""

    loss: Tensor
    """Mean next-token loss."""
    divergence: Tensor
    """Mean KL(untouched ‖ stack)."""
    last_divergence: Tensor
    """The same at the last predicted token only."""


class Work(NamedTuple):
    """What was computed so far, summed over sequences."""

    layers: int
    """Passes of one sequence through one layer."""
    heads: int
    """Passes of one sequence through the final norm and the head."""

    def forwards(self, loaded: LoadedModel, sequences: int) -> float:
        """As passes of the whole model over so many sequences, by the parameters that worked."""
        layers = len(loaded.layers)
        head: nn.Module | None = cast(Any, loaded.model).get_output_embeddings()
        head_size = sum(parameter.numel() for parameter in head.parameters()) if head else 0
        layer_size = sum(loaded.facts.layer_parameters) / layers
        spent = self.layers * layer_size + self.heads * head_size
        return spent / (layers * layer_size + head_size) / sequences


class Skipper:
    """Measures stacks of a model's layers on a text; made by `skipping`."""

    def __init__(
        self,
        run: RunSomeLayers,
        loaded: LoadedModel,
        batches: Sequence[Batch],
        memory_bytes: int,
        silence: Silence | None = None,
    ) -> None:
        self.whole: Kept = tuple(range(len(loaded.layers)))
        self.batches = batches
        self.work = Work(0, 0)
        self._run, self._loaded, self._device = run, loaded, loaded.device
        self._silence = silence
        self._kept = KeptStates(memory_bytes)
        self._base = self.whole
        self._passing: set[Kept] = set()
        """Beginnings whose states are kept for a while."""

    @property
    def base(self) -> Kept:
        """The stack on whose way states are kept for the stacks to come."""
        return self._base

    @base.setter
    def base(self, stack: Kept) -> None:
        self._base = stack
        stale = [
            key
            for key in self._kept
            if isinstance(key, tuple) and isinstance(key[0], tuple) and not _begins(stack, key[0])
        ]
        self._kept.discard(stale)

    def without_parts(self, removed: Iterable[int]) -> Kept:
        """The stack without some parts, which are numbered as in `Sublayer.unit`."""
        gone, layers = set(removed), len(self.whole)
        stack = []
        for layer in range(layers):
            attention, mlp = (2 * layer + number not in gone for number in range(2))
            if attention or mlp:
                stack.append(
                    layer + (0 if attention and mlp else layers if attention else 2 * layers)
                )
        return tuple(stack)

    def measure(self, stack: Kept, number: int) -> Losses:
        """What a batch says of a stack."""
        ((_, found),) = self.measure_each([stack], number)
        return found

    def measure_each(
        self, stacks: Iterable[Kept], number: int
    ) -> Generator[tuple[Kept, Losses], None, None]:
        """What a batch says of several stacks, each beginning that they share run once.

        The first time that a batch is asked for, the untouched model runs on it too.

        Args:
            stacks: Their layers.
            number: Of the batch.

        Yields:
            Each stack once, as soon as it is measured, in the order of `in_order`.
        """
        order = in_order(stacks)
        shared = [_common(one, other) for one, other in pairwise(order)] + [0]
        forks = {stack[:length] for stack, length in zip(order, shared, strict=True)}
        fresh = None if ("reference", number) in self._kept else self._keep_reference(number)
        try:
            for stack, length in zip(order, shared, strict=True):
                if stack != self.whole or fresh is None:
                    wanted = {fork for fork in forks if _begins(stack[:length], fork)}
                    fresh = self._forward(stack, number, wanted)
                found, fresh = self._compare(fresh, number), None
                yield stack, found
                self._discard(number, but_of=stack[:length])
        finally:
            self._discard(number)

    def gate_gradients(self, number: int, *, directions: int, seed: int) -> Tensor:
        """Gradients by one gate a layer of a batch's predictions, see `gates.gate_gradients`."""
        batch = self.batches[number]
        found = gate_gradients(
            self._run, self._loaded, batch, directions=directions, seed=seed + number
        )
        # One pass forward and one backward for the loss and each direction: as much work again.
        passes = (2 + directions) * len(batch.ids)
        layers, heads = self.work
        self.work = Work(layers + passes * len(self.whole), heads + passes)
        return found

    def forget(self, number: int) -> None:
        """Give back what is kept of a batch that is not asked for again."""
        self._kept.discard(
            [key for key in self._kept if isinstance(key, tuple) and key[1] == number]
        )

    def _discard(self, number: int, *, but_of: Kept = ()) -> None:
        """Forget what was kept for a while, but the beginnings of a stack."""
        gone = {each for each in self._passing if not _begins(but_of, each)}
        self._kept.discard((each, number) for each in gone)
        self._passing -= gone

    def _keep_reference(self, number: int) -> Tensor:
        logits = self._forward(self.whole, number)
        for name, part in reference_of(self._predicting(logits, number))._asdict().items():
            self._kept.put((name, number), part)
        self._kept.put(("reference", number), torch.zeros(0))
        return logits

    def _forward(self, stack: Kept, number: int, wanted: Container[Kept] = ()) -> Tensor:
        """Run a stack from the deepest state that is kept of it.

        Args:
            wanted: Beginnings of the stack whose states are kept for a while.
        """
        ids = self.batches[number].ids
        shared = len(stack)
        while shared and (stack[:shared], number) not in self._kept:
            shared -= 1
        entering = self._kept.get((stack[:shared], number), self._device) if shared else None

        places = {each % len(self.whole): place for place, each in enumerate(stack)}

        def observe(layer: int, state: Tensor) -> None:
            before = stack[: places[layer]]
            if not before or (before, number) in self._kept:
                return
            if _begins(self._base, before):
                self._kept.put((before, number), state)
            elif before in wanted:
                self._kept.put((before, number), state)
                self._passing.add(before)

        layers, heads = self.work
        self.work = Work(layers + (len(stack) - shared) * len(ids), heads + len(ids))
        if self._silence is not None:
            kinds = (divmod(each, len(self.whole)) for each in stack[shared:])
            self._silence({(layer, PARTS[kind % 2]) for kind, layer in kinds if kind})
        running = [layer for layer, place in places.items() if place >= shared]
        return self._run(ids, running, entering=entering, observe=observe)

    def _predicting(self, logits: Tensor, number: int) -> Tensor:
        """Those that predict a token of the sequence, (tokens, vocabulary)."""
        mask = self.batches[number].mask[:, 1:].to(logits.device)
        return logits[:, :-1][mask] if not mask.all() else logits[:, :-1].flatten(0, 1)

    def _compare(self, logits: Tensor, number: int) -> Losses:
        batch = self.batches[number]
        targets = batch.ids[:, 1:][batch.mask[:, 1:]].to(logits.device)
        reference = Reference(
            *(self._kept.get((name, number), logits.device) for name in Reference._fields)
        )
        found = losses_and_divergences(self._predicting(logits, number), targets, reference)
        lengths = (batch.mask.sum(1) - 1).tolist()
        losses, divergences = (torch.split(each.cpu().double(), lengths) for each in found)
        return Losses(
            torch.stack([each.mean() for each in losses]),
            torch.stack([each.mean() for each in divergences]),
            torch.stack([each[-1] for each in divergences]),
        )


@contextlib.contextmanager
def skipping(
    loaded: LoadedModel,
    sequences: Sequences,
    *,
    batch_size: int | None = None,
    parts: bool = False,
) -> Iterator[Skipper]:
    """A context that measures stacks of a model's layers on a text.

    Args:
        loaded: The model; restored at the end.
        sequences: The text, at least 2 tokens each.
        batch_size: Sequences in a forward pass; default: chosen from the memory at hand, the same
            in all processes.
        parts: Whether stacks may hold the attention or the MLP of a layer alone.

    Raises:
        ArchitectureError: The model cannot be run in part.
        SettingsError: A batch size below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise SettingsError(f"batch size {batch_size}: at least 1 is needed")
    size = batch_size or min(all_ranks().everywhere(_batch_size(loaded, sequences)))
    memory_bytes = int(free_memory_bytes(loaded.device) * _KEPT_SHARE)
    with contextlib.ExitStack() as stack:
        silence = stack.enter_context(silencing(loaded)) if parts else None
        run = stack.enter_context(running_some_layers(loaded))
        yield Skipper(run, loaded, tuple(sequences.batches(size)), memory_bytes, silence)


def _batch_size(loaded: LoadedModel, sequences: Sequences) -> int:
    longest = max(len(sequence) for sequence in sequences.sequences)
    head = loaded.model.config.get_text_config().vocab_size * 8  # logits, and those in float32
    on_cpu = loaded.device.type == "cpu"
    return fitting_batch_size(
        loaded,
        longest,
        bytes_per_token=head,
        most=max(1, _CPU_BATCH_TOKENS // longest) if on_cpu else 32,
    )


def in_order(stacks: Iterable[Kept]) -> list[Kept]:
    """Each stack once, those that begin alike next to each other, the longer before its beginning.

    So each shared beginning has its states kept by the first that passes it.
    """
    end = 1 << 30
    return sorted(set(stacks), key=lambda stack: (*stack, end))


def _common(first: Kept, second: Kept) -> int:
    """How many layers two stacks begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _begins(stack: Kept, prefix: Kept) -> bool:
    return stack[: len(prefix)] == prefix
