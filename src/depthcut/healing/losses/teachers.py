"""Whom a model learns from: the untouched model, run beside it or read from a file."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.healing.losses.table import SomePredictions
from depthcut.model.loading import LoadedModel
from depthcut.records import ModelFacts


class Untouched(NamedTuple):
    """The model that teaches, not loaded yet: where its predictions are kept it need not be."""

    facts: ModelFacts
    load: Callable[[], LoadedModel]


class Teacher(Protocol):
    """What says, for a batch, what a better model thinks of it."""

    def predictions(
        self, batch: Mapping[str, Tensor], rows: Tensor
    ) -> "tuple[Tensor | SomePredictions | None, tuple[Tensor, ...]]":
        """Predictions and states of the tokens that count.

        Args:
            batch: `input_ids` and `attention_mask`, (batch, length), and `number`, (batch,): each
                sequence's own.
            rows: (batch, length) bool: the tokens that count.

        Returns:
            As `losses.Seen` has them.
        """
        ...


class OnlineTeacher:
    """A model that runs beside the training."""

    def __init__(self, loaded: LoadedModel, depths: Sequence[int], *, logits: bool) -> None:
        """Take a model for teacher.

        Args:
            loaded: The untouched model.
            depths: Where its states are wanted, each behind one of its layers: from 1 on.
            logits: Whether its predictions are wanted.
        """
        self._loaded, self._depths, self._logits = loaded, depths, logits
        loaded.model.train(False).requires_grad_(False)

    def predictions(
        self, batch: Mapping[str, Tensor], rows: Tensor
    ) -> "tuple[Tensor | SomePredictions | None, tuple[Tensor, ...]]":
        run = self._loaded.model if self._logits else self._loaded.backbone
        inputs = {
            name: batch[name].to(self._loaded.device) for name in ("input_ids", "attention_mask")
        }
        layers = [self._loaded.layers[depth - 1] for depth in self._depths]
        with torch.no_grad(), leaving(layers) as states:
            output = run(**inputs, use_cache=False)
        logits = (
            output.logits[rows.to(output.logits.device)].to(rows.device) if self._logits else None
        )
        return logits, tuple(each[rows.to(each.device)].to(rows.device) for each in states)


@contextlib.contextmanager
def leaving(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A context in which the list takes, of the next forward pass, what leaves these layers."""
    found: list[Tensor] = []

    def take(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output if isinstance(output, Tensor) else output[0])

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_hook(take).remove)
        yield found


def refuse_other_vocabulary(loaded: LoadedModel, teacher: LoadedModel) -> None:
    """Refuse a teacher that means other tokens by the same numbers.

    Raises:
        SettingsError: Its vocabulary is another.
    """
    ours, theirs = (
        int(each.model.config.get_text_config().vocab_size) for each in (loaded, teacher)
    )
    words = [each.tokenizer.get_vocab() if each.tokenizer else None for each in (loaded, teacher)]
    if ours != theirs or (None not in words and words[0] != words[1]):
        raise SettingsError(
            f"the teacher {teacher.facts.source} has another vocabulary ({theirs:,} tokens) than "
            f"{loaded.facts.source} ({ours:,}): give the model that was cut, --teacher parent"
        )
