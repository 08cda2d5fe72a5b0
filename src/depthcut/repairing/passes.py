"""The untouched and the repaired model run side by side over a text, layer after layer.

Both go on from where they were: the untouched model runs each layer once, the repaired one each
layer that stays, and those that are solved for once more for each solve.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.model.kept_states import KeptStates
from depthcut.repairing.changes import Change, Seen
from depthcut.repairing.layers import Layers
from depthcut.text.sequences import Batch


class Passes:
    """Both models, as far as they have run."""

    def __init__(
        self,
        layers: Layers,
        batches: Sequence[Batch],
        kept_layers: Sequence[int],
        memory_bytes: int,
        advance: Callable[[float], object],
    ) -> None:
        """Both at the embeddings.

        Args:
            layers: The untouched model's.
            batches: What both read.
            kept_layers: Those of the repaired model.
            memory_bytes: Of states, before they go to a file.
            advance: Told the tokens of each batch, times the layers that it has passed.
        """
        self._layers, self._batches, self._kept_layers = layers, batches, kept_layers
        self._advance = advance
        self._kept = KeptStates(memory_bytes)
        self._at: tuple[int, int] | None = None
        """The layer that the repaired model's kept states enter, and the depth of the untouched
        model's."""

    def over(
        self, layer: int, depth: int, change: Change, *, numbers: Sequence[int]
    ) -> Iterator[Seen]:
        """Run the repaired model through a layer, and the untouched one to a depth.

        Each call goes as far as the one before or further.

        Args:
            layer: The last layer of the repaired model that runs.
            depth: How many layers the untouched model has run when it gives the target.
            change: Of tensors of the layer.
            numbers: Of the batches that are read. Some may be left out where the call before went
                as far.
        """
        if self._at is None:  # up to the first cut or repair both are one
            one = next((each for each, kept in enumerate(self._kept_layers) if kept != each), layer)
            one = min(one, layer)
            self._through("untouched", range(one))
            for number in range(len(self._batches)) if one else ():
                self._keep("repaired", number, self._state("untouched", number))
            self._at = one, one
        self.untouched_to(depth)
        entered, reached = self._at
        self._through("repaired", [each for each in self._kept_layers if entered <= each < layer])
        self._at = layer, reached
        self._layers.enter(layer)
        for number in numbers:
            with _watching(change.watched) as caught:
                left = self._ran("repaired", number, [layer])
            rows = _Rows(self._batches[number].mask.flatten().to(left.device))
            yield change.seen(
                rows(left),
                rows(self._state("untouched", number)),
                {module: (rows(took), rows(gave)) for module, (took, gave) in caught.items()},
            )

    def untouched_to(self, depth: int) -> None:
        """Run the untouched model so far, if it is not: through a layer before that is changed."""
        assert self._at is not None
        entered, reached = self._at
        self._through("untouched", range(reached, depth))
        self._at = entered, max(reached, depth)

    def _through(self, which: str, layers: Sequence[int]) -> None:
        for stretch in self._layers.stretches(layers):
            for number in range(len(self._batches)):
                self._keep(which, number, self._ran(which, number, stretch))

    def _ran(self, which: str, number: int, layers: Sequence[int]) -> Tensor:
        batch = self._batches[number]
        entering = self._state(which, number) if layers[0] else None
        left = self._layers.run(batch.ids, layers, entering=entering, head=False)
        self._advance(int(batch.mask.sum()) * len(layers))
        return left

    def _state(self, which: str, number: int) -> Tensor:
        return self._kept.get((which, number), self._layers.loaded.device)

    def _keep(self, which: str, number: int, states: Tensor) -> None:
        self._kept.discard([(which, number)])
        self._kept.put((which, number), states)


class _Rows:
    """States of a batch as rows, one for each token: half precision in float32, where it is exact,
    the rest in float64."""

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def __call__(self, states: Tensor) -> Tensor:
        found = states.to(self._mask.device).reshape(len(self._mask), -1)[self._mask]
        found = found.cpu() if found.device.type == "mps" else found  # no float64 there
        half = found.dtype in (torch.bfloat16, torch.float16)
        return found.float() if half else found.double()


@contextlib.contextmanager
def _watching(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """A context in which what modules took and gave is kept."""
    caught: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def take(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught[module] = args[0], output.clone()

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(take).remove)
        yield caught
