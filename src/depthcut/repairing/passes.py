"""The untouched and the repaired model run side by side over a text, layer after layer.

Both go on from where they were: the untouched model runs each layer once, the repaired one each
layer that stays, and those that are solved for once more for each solve.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.model.kept_states import KeptStates
from depthcut.model.loading import LoadedModel
from depthcut.model.some_layers import Observe, RunSomeLayers, running_some_layers
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
        run: RunSomeLayers,
        loaded: LoadedModel,
        batches: Sequence[Batch],
        kept_layers: Sequence[int],
        memory_bytes: int,
    ) -> None:
        """Both at the embeddings."""
        self._run, self._loaded, self._batches = run, loaded, batches
        self._kept_layers = kept_layers
        self._kept = KeptStates(memory_bytes)
        self._at: tuple[int, int] | None = None
        """The layer that the repaired model's kept states enter, and the depth of the untouched
        model's."""

    def over(
        self, layer: int, depth: int, joined: Joined, *, numbers: Sequence[int], more: bool
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
            more: Whether another call comes: states are kept for it.
        """
        for number in numbers:
            with _catching(self._loaded, layer, joined) as caught:
                target = self._run_both(number, layer, depth, caught)
            if more:
                self._keep("untouched", number, target)
                self._keep("repaired", number, caught.entered)
            yield _seen(self._batches[number], joined, caught, target)
        self._at = layer, depth

    def _run_both(self, number: int, layer: int, depth: int, caught: "_Caught") -> Tensor:
        ids, observe = self._batches[number].ids, _entering(layer, caught)
        if self._at is None:  # up to its first repair the repaired model is the untouched one
            return self._run(ids, range(depth), head=False, observe=observe)
        (entered, reached), device = self._at, self._loaded.device
        target = self._kept.get(("untouched", number), device)
        if depth > reached:
            target = self._run(ids, range(reached, depth), entering=target, head=False)
        self._run(  # after the other, as both may pass the layer that is watched
            ids,
            [each for each in self._kept_layers if entered <= each <= layer],
            entering=self._kept.get(("repaired", number), device),
            head=False,
            observe=observe,
        )
        return target

    def _keep(self, which: str, number: int, states: Tensor) -> None:
        self._kept.discard([(which, number)])
        self._kept.put((which, number), states)


@contextlib.contextmanager
def passing(
    loaded: LoadedModel, batches: Sequence[Batch], kept_layers: Sequence[int], memory_bytes: int
) -> Iterator[Passes]:
    """A context in which both models run; but for weights that the caller sets, all is restored.

    Args:
        loaded: The untouched model.
        batches: What it reads.
        kept_layers: Those of the repaired model.
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
        yield Passes(run, loaded, batches, kept_layers, memory_bytes)


@dataclass
class _Caught:
    """Of a layer's pass; filled by hooks."""

    given: dict[nn.Module, Tensor] = field(default_factory=dict)
    gave: dict[nn.Module, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)

    @property
    def entered(self) -> Tensor:
        return self.states["entered"]


def _entering(layer: int, caught: _Caught) -> Observe:
    def observe(index: int, state: Tensor) -> None:
        if index == layer:
            caught.states["entered"] = state

    return observe


@contextlib.contextmanager
def _catching(loaded: LoadedModel, layer: int, joined: Joined) -> Iterator[_Caught]:
    """What the projections take and give, and what leaves their layer."""
    caught = _Caught()

    def of_projection(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        caught.given[module], caught.gave[module] = args[0], output.clone()

    def of_layer(_: nn.Module, __: Any, output: Any) -> None:
        caught.states["left"] = output if isinstance(output, Tensor) else output[0]

    with contextlib.ExitStack() as stack:
        for part in joined.parts:
            stack.callback(part.module.register_forward_hook(of_projection).remove)
        stack.callback(loaded.layers[layer].register_forward_hook(of_layer).remove)
        yield caught


def _seen(batch: Batch, joined: Joined, caught: _Caught, target: Tensor) -> Seen:
    left = caught.states["left"]
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
