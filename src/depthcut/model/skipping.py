"""What a model loses without some of its layers, from states kept at the cut.

What enters the first removed layer does not depend on what is removed: the states on the way of
one stack (the base) are computed once and kept, and every other stack runs only from where it
leaves the base.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from depthcut.model.batching import fitting_batch_size, free_memory_bytes
from depthcut.model.kept_states import KeptStates
from depthcut.model.loading import LoadedModel
from depthcut.model.some_layers import RunSomeLayers, running_some_layers
from depthcut.predictions import Reference, losses_and_divergences, reference_of
from depthcut.text.sequences import Batch, Sequences

_CPU_BATCH_TOKENS = 1024
_KEPT_SHARE = 0.4
"""Of the free memory that kept states and distributions may take; beyond, they go to a file."""

Kept = tuple[int, ...]
"""The layers of a stack, ascending."""


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
        self, run: RunSomeLayers, loaded: LoadedModel, batches: Sequence[Batch], memory_bytes: int
    ) -> None:
        self.whole: Kept = tuple(range(len(loaded.layers)))
        self.batches = batches
        self.work = Work(0, 0)
        self._run, self._device = run, loaded.device
        self._kept = KeptStates(memory_bytes)
        self._base = self.whole
        self._known: set[tuple[Kept, int]] = set()

    @property
    def base(self) -> Kept:
        """The stack whose states are kept."""
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

    def measure(self, stack: Kept, number: int) -> Losses:
        """What a batch says of a stack; runs from where the stack leaves the base.

        The first time that a batch is asked for, the untouched model runs on it too, and the
        first time after the base changed, the base.

        Args:
            stack: Its layers.
            number: Of the batch.
        """
        if ("reference", number) not in self._kept:
            self._keep_reference(number)
        if stack != self._base and not self._has_states(number):
            self._forward(self._base, number, head=False)
        return self._compare(self._forward(stack, number), number)

    def forget(self, number: int) -> None:
        """Give back what is kept of a batch that is not asked for again."""
        self._kept.discard(
            [key for key in self._kept if isinstance(key, tuple) and key[1] == number]
        )

    def _has_states(self, number: int) -> bool:
        return len(self._base) < 2 or (self._base[:-1], number) in self._kept

    def _keep_reference(self, number: int) -> None:
        logits = self._forward(self.whole, number)
        for name, part in reference_of(self._predicting(logits, number))._asdict().items():
            self._kept.put((name, number), part)
        self._kept.put(("reference", number), torch.zeros(0))

    def _forward(self, stack: Kept, number: int, *, head: bool = True) -> Tensor:
        """Run a stack from where it leaves the base, and keep what it meets on the base's way."""
        ids = self.batches[number].ids
        shared = _common(stack, self._base)
        while shared and (stack[:shared], number) not in self._kept:
            shared -= 1
        entering = self._kept.get((stack[:shared], number), self._device) if shared else None

        def observe(layer: int, state: Tensor) -> None:
            before = stack[: stack.index(layer)]
            if before and _begins(self._base, before) and (before, number) not in self._kept:
                self._kept.put((before, number), state)

        layers, heads = self.work
        self.work = Work(layers + (len(stack) - shared) * len(ids), heads + head * len(ids))
        return self._run(ids, stack[shared:], entering=entering, head=head, observe=observe)

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
    loaded: LoadedModel, sequences: Sequences, *, batch_size: int | None = None
) -> Iterator[Skipper]:
    """A context that measures stacks of a model's layers on a text.

    Args:
        loaded: The model; restored at the end.
        sequences: The text, at least 2 tokens each.
        batch_size: Sequences in a forward pass; default: chosen from the memory at hand.

    Raises:
        ArchitectureError: The model cannot be run in part.
        SettingsError: A batch size below 1.
    """
    size = batch_size or _batch_size(loaded, sequences)
    memory_bytes = int(free_memory_bytes(loaded.device) * _KEPT_SHARE)
    with running_some_layers(loaded) as run:
        yield Skipper(run, loaded, tuple(sequences.batches(size)), memory_bytes)


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


def _common(first: Kept, second: Kept) -> int:
    """How many layers two stacks begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))


def _begins(stack: Kept, prefix: Kept) -> bool:
    return stack[: len(prefix)] == prefix
