"""Whole weights that are trained: opened for a while, in float32."""

import contextlib
from collections.abc import Iterator, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from depthcut.errors import SettingsError
from depthcut.healing.weights.adapters import layer_of
from depthcut.healing.weights.restoring import as_before
from depthcut.healing.weights.targets import Targets
from depthcut.model.loading import LoadedModel


@contextlib.contextmanager
def opened(loaded: LoadedModel, chosen: Targets | None) -> Iterator[Mapping[str, Tensor]]:
    """The weights that train, by name; the others stand still.

    They are float32 meanwhile, whatever they were, so that small steps are not rounded away. A
    model in memory is at the end as it was before; one that came from a folder keeps what it
    learned.

    Args:
        loaded: The model.
        chosen: Whose weights; None: all.

    Raises:
        SettingsError: The weights are quantised.
    """
    if getattr(loaded.model, "is_quantized", False):
        raise SettingsError(
            "whole weights cannot be trained on a 4-bit base: choose --method qlora, or leave "
            "--load-in-4bit out"
        )
    model = loaded.model
    names = {id(weight): name for name, weight in model.named_parameters()}
    wanted = set(names) if chosen is None else _of(loaded, chosen)
    found: dict[str, nn.Parameter] = {}
    before: dict[str, Tensor | torch.dtype] = {}
    with as_before(model):
        for name, weight in model.named_parameters():
            trains = id(weight) in wanted and weight.is_floating_point()
            weight.requires_grad_(trains)
            if trains:
                before[name] = weight.data if loaded.folder is None else weight.dtype
                found[name] = weight
                weight.data = weight.data.float()
        try:
            yield found
        finally:
            for name, weight in found.items():
                weight.grad = None
                was = before[name]
                weight.data = was if isinstance(was, Tensor) else weight.data.to(was)


def as_stored(loaded: LoadedModel, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Weights as the checkpoint names and shapes them, float32 on the CPU."""
    for _, layer in groupby(weights.items(), key=lambda named: layer_of(named[0])):
        with torch.no_grad():
            values = {name: weight.detach().float().cpu() for name, weight in layer}
            yield from revert_weight_conversion(loaded.model, values).items()


def _of(loaded: LoadedModel, chosen: Targets) -> set[int]:
    modules = [loaded.layers[number] for number in sorted(chosen.layers)]
    if chosen.head:
        modules.append(loaded.model.get_output_embeddings())  # type: ignore[no-untyped-call]
    return {id(weight) for module in modules for weight in module.parameters()}
