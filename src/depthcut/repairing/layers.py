"""The layers that a repair runs and changes: all in memory, or read one by one."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel
from depthcut.model.some_layers import RunSomeLayers, running_some_layers
from depthcut.model.streaming import StreamedModel, streaming_layers


class Layers(Protocol):
    """A model's layers. Weights that were put stay, for as long as the context lasts."""

    loaded: LoadedModel
    run: RunSomeLayers
    """Runs layers that are there."""

    def enter(self, layer: int) -> None:
        """Let a layer be there."""

    def stretches(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        """Some layers, in pieces that are there at once."""

    def put(self, layer: int, tensors: Mapping[str, Tensor]) -> None:
        """Set tensors of a layer that is there, by their names in the model."""

    def take_back(self, layer: int) -> None:
        """Undo all that was put into a layer."""


@contextlib.contextmanager
def layers_in_memory(loaded: LoadedModel) -> Iterator[Layers]:
    """A context with the layers of a model that is in memory; at the end it is as before.

    Raises:
        ArchitectureError: The model cannot be run in part.
    """
    with contextlib.ExitStack() as stack:
        with _explained(loaded):
            run = stack.enter_context(running_some_layers(loaded))
        layers = _InMemory(loaded, run)
        stack.callback(layers.restore)
        yield layers


@contextlib.contextmanager
def layers_streamed(streamed: StreamedModel) -> Iterator[Layers]:
    """A context with the layers of a model that is read layer by layer.

    Raises:
        ArchitectureError: Layers do not run alone as they do together.
        CheckpointError: A weight file is damaged.
    """
    with contextlib.ExitStack() as stack:
        with _explained(streamed.loaded):
            run = stack.enter_context(streaming_layers(streamed))
        yield _Streamed(streamed, run)


class _InMemory:
    def __init__(self, loaded: LoadedModel, run: RunSomeLayers) -> None:
        self.loaded, self.run = loaded, run
        self._before: dict[int, dict[str, Tensor]] = {}

    def enter(self, layer: int) -> None:
        pass

    def stretches(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        if layers:
            yield layers

    def put(self, layer: int, tensors: Mapping[str, Tensor]) -> None:
        before = self._before.setdefault(layer, {})
        for name in tensors:
            if name not in before:
                before[name] = self.loaded.model.get_parameter(name).detach().clone()
        _set(self.loaded, tensors)

    def take_back(self, layer: int) -> None:
        _set(self.loaded, self._before.pop(layer, {}))

    def restore(self) -> None:
        for layer in [*self._before]:
            self.take_back(layer)


class _Streamed:
    def __init__(self, streamed: StreamedModel, run: RunSomeLayers) -> None:
        self.loaded, self.run = streamed.loaded, run
        self._weights = streamed.weights
        self._there: int | None = None
        self._put: dict[int, dict[str, Tensor]] = {}

    def enter(self, layer: int) -> None:
        if layer != self._there:
            self._weights.enter(layer)
            self._there = layer
            _set(self.loaded, self._put.get(layer, {}))

    def stretches(self, layers: Sequence[int]) -> Iterator[Sequence[int]]:
        for layer in layers:
            self.enter(layer)
            yield [layer]

    def put(self, layer: int, tensors: Mapping[str, Tensor]) -> None:
        self._put.setdefault(layer, {}).update(tensors)
        _set(self.loaded, tensors)

    def take_back(self, layer: int) -> None:
        self._put.pop(layer, None)
        self._there = None  # what is there is read anew


def _set(loaded: LoadedModel, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            loaded.model.get_parameter(name).copy_(tensor)


@contextlib.contextmanager
def _explained(loaded: LoadedModel) -> Iterator[None]:
    try:
        yield
    except ArchitectureError as error:
        raise ArchitectureError(
            f"the layers of {loaded.facts.source} ({loaded.facts.model_type}) pass more to each "
            "other than the residual stream: a part of them cannot be run, which repair needs; "
            "heal the cut model instead (depthcut heal)"
        ) from error
