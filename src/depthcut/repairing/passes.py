"""The untouched and the repaired model run side by side over a text, block after block.

Both go on from where they were: the untouched model runs each layer once, the repaired one each
layer that stays, and the layer that was repaired once more.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.model.kept_states import KeptStates
from depthcut.model.loading import LoadedModel
from depthcut.model.some_layers import Observe, RunSomeLayers, running_some_layers
from depthcut.records import Block
from depthcut.repairing.projections import Projection
from depthcut.text.sequences import Batch


class Seen(NamedTuple):
    """What a batch says of a block: a row for each token, float32 or float64."""

    given: Tensor
    """What the projection takes, a 1 behind it for the bias."""
    wanted: Tensor
    """What it should give: the target without what its output is added to."""
    target: Tensor
    """The untouched model's state where the block ended."""


class Passes:
    """Both models, as far as they have run."""

    def __init__(
        self, run: RunSomeLayers, loaded: LoadedModel, batches: Sequence[Batch], memory_bytes: int
    ) -> None:
        """Both at the embeddings."""
        self._run, self._loaded, self._batches = run, loaded, batches
        self._kept = KeptStates(memory_bytes)
        self._reached: tuple[int, int] | None = None
        """The layer repaired last, and where its block ended."""

    def over(self, block: Block, projection: Projection, *, more: bool) -> Iterator[Seen]:
        """Run up to the end of a block. They come in order, each after the one before is repaired.

        Args:
            block: What was removed.
            projection: Of the layer before it.
            more: Whether another block comes: states are kept for it.
        """
        for number, batch in enumerate(self._batches):
            with _catching(self._loaded, projection) as caught:
                if self._reached is None:
                    target = self._first(number, block, projection, caught)
                else:
                    target = self._next(number, block, projection, caught)
            if more:
                self._keep("untouched", number, target)
                self._keep("repaired", number, caught["entered"])
            yield _seen(batch, projection, caught, target)
        self._reached = projection.layer, block[1]

    def _first(
        self, number: int, block: Block, projection: Projection, caught: dict[str, Tensor]
    ) -> Tensor:
        """Up to its first repair the repaired model is the untouched one."""
        ids, observe = self._batches[number].ids, _entering(projection.layer, caught)
        return self._run(ids, range(block[1]), head=False, observe=observe)

    def _next(
        self, number: int, block: Block, projection: Projection, caught: dict[str, Tensor]
    ) -> Tensor:
        assert self._reached is not None
        repaired, reached = self._reached
        ids, device = self._batches[number].ids, self._loaded.device
        target = self._run(
            ids,
            range(reached, block[1]),
            entering=self._kept.get(("untouched", number), device),
            head=False,
        )
        self._run(  # after the other, as both pass the layer that is watched
            ids,
            [repaired, *range(reached, block[0])],
            entering=self._kept.get(("repaired", number), device),
            head=False,
            observe=_entering(projection.layer, caught),
        )
        return target

    def _keep(self, which: str, number: int, states: Tensor) -> None:
        self._kept.discard([(which, number)])
        self._kept.put((which, number), states)


@contextlib.contextmanager
def passing(loaded: LoadedModel, batches: Sequence[Batch], memory_bytes: int) -> Iterator[Passes]:
    """A context in which both models run; but for weights that the caller sets, all is restored.

    Args:
        loaded: The untouched model.
        batches: What it reads.
        memory_bytes: Of states, before they go to a file.

    Raises:
        ArchitectureError: The model cannot be run in part.
    """
    with contextlib.ExitStack() as stack:
        try:
            run = stack.enter_context(running_some_layers(loaded))
        except ArchitectureError as error:
            raise ArchitectureError(
                f"the layers of {loaded.facts.source} ({loaded.facts.model_type}) pass more to "
                "each other than the residual stream: a part of them cannot be run, which repair "
                "needs; heal the cut model instead (depthcut heal)"
            ) from error
        yield Passes(run, loaded, batches, memory_bytes)


def _entering(layer: int, caught: dict[str, Tensor]) -> Observe:
    def observe(index: int, state: Tensor) -> None:
        if index == layer:
            caught["entered"] = state

    return observe


@contextlib.contextmanager
def _catching(loaded: LoadedModel, projection: Projection) -> Iterator[dict[str, Tensor]]:
    """What the projection takes and gives, and what leaves its layer."""
    caught: dict[str, Tensor] = {}

    def of_projection(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught["given"], caught["gave"] = args[0], output.clone()

    def of_layer(_: nn.Module, __: Any, output: Any) -> None:
        caught["left"] = output if isinstance(output, Tensor) else output[0]

    with contextlib.ExitStack() as stack:
        stack.callback(projection.module.register_forward_hook(of_projection).remove)
        layer = loaded.layers[projection.layer]
        stack.callback(layer.register_forward_hook(of_layer).remove)
        yield caught


def _seen(batch: Batch, projection: Projection, caught: dict[str, Tensor], target: Tensor) -> Seen:
    device = caught["left"].device
    mask = batch.mask.flatten().to(device)

    def rows(states: Tensor) -> Tensor:
        return _precise(states.to(device).reshape(len(mask), -1)[mask])

    wide = rows(target)
    added_to = rows(caught["left"]) - rows(caught["gave"])
    return Seen(projection.inputs_of(rows(caught["given"])), wide - added_to, wide)


def _precise(states: Tensor) -> Tensor:
    """Half precision in float32, where it is exact; the rest in float64."""
    states = states.cpu() if states.device.type == "mps" else states  # no float64 there
    half = states.dtype in (torch.bfloat16, torch.float16)
    return states.float() if half else states.double()
