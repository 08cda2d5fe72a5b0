"""The untouched and the repaired model run side by side over a text, layer after layer.

Both go on from where they were: the untouched model runs each layer once, the repaired one each
layer that stays, and those that are solved for once more for each solve.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from depthcut.model.kept_states import KeptStates
from depthcut.repairing.layers import Layers
from depthcut.repairing.projections import Joined
from depthcut.text.sequences import Batch


class Seen(NamedTuple):
    """What a batch says of a layer: a row for each token, float32 or float64."""

    given: Tensor
    """What the projections take, side by side, a 1 behind it for each bias."""
    wanted: Tensor
    """What they should give together: the target without what their outputs are added to."""
    target: Tensor
    """The untouched model's state."""


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
        self, layer: int, depth: int, joined: Joined, *, numbers: Sequence[int]
    ) -> Iterator[Seen]:
        """Run the repaired model through a layer, and the untouched one to a depth.

        Each call goes as far as the one before or further. A layer may be changed once the
        untouched model has run through it.

        Args:
            layer: The last layer of the repaired model that runs.
            depth: How many layers the untouched model has run when it gives the target.
            joined: Projections of the layer.
            numbers: Of the batches that are read. Some may be left out where the call before went
                as far.
        """
        if self._at is None:  # up to its first repair the repaired model is the untouched one
            self._through("untouched", range(layer), numbers)
            for number in numbers if layer else ():
                self._keep("repaired", number, self._state("untouched", number))
            self._at = layer, layer
        entered, reached = self._at
        self._through("untouched", range(reached, depth), numbers)
        passed = [each for each in self._kept_layers if entered <= each < layer]
        self._through("repaired", passed, numbers)
        self._at = layer, depth
        self._layers.enter(layer)
        for number in numbers:
            with _catching(joined) as caught:
                left = self._ran("repaired", number, [layer])
            target = self._state("untouched", number)
            yield _seen(self._batches[number], joined, caught, left, target)

    def _through(self, which: str, layers: Sequence[int], numbers: Sequence[int]) -> None:
        for stretch in self._layers.stretches(layers):
            for number in numbers:
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


@dataclass
class _Caught:
    """Of projections in a layer's pass; filled by hooks."""

    given: dict[nn.Module, Tensor] = field(default_factory=dict)
    gave: dict[nn.Module, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def _catching(joined: Joined) -> Iterator[_Caught]:
    caught = _Caught()

    def take(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught.given[module], caught.gave[module] = args[0], output.clone()

    with contextlib.ExitStack() as stack:
        for part in joined.parts:
            stack.callback(part.module.register_forward_hook(take).remove)
        yield caught


def _seen(batch: Batch, joined: Joined, caught: _Caught, left: Tensor, target: Tensor) -> Seen:
    mask = batch.mask.flatten().to(left.device)

    def rows(states: Tensor) -> Tensor:
        return _precise(states.to(left.device).reshape(len(mask), -1)[mask])

    wanted = wide = rows(target)
    wanted = wanted - rows(left)
    for part in joined.parts:
        wanted = wanted + rows(caught.gave[part.module])
    given = [rows(caught.given[part.module]) for part in joined.parts]
    return Seen(joined.inputs_of(given), wanted, wide)


def _precise(states: Tensor) -> Tensor:
    """Half precision in float32, where it is exact; the rest in float64."""
    states = states.cpu() if states.device.type == "mps" else states  # no float64 there
    half = states.dtype in (torch.bfloat16, torch.float16)
    return states.float() if half else states.double()
