"""The residual stream of a model at every depth, taken by hooks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.text.sequences import Batch

ReadStates = Callable[[Batch], tuple[Tensor, ...]]


@contextlib.contextmanager
def reading_states(loaded: LoadedModel) -> Iterator[ReadStates]:
    """A context that gives a function from a batch to the states at all depths.

    The function runs the backbone once, without head and cache, and returns L + 1 tensors of
    shape (batch, length, hidden) in the model's own dtype: what enters each layer, then what
    leaves the last one, before the final norm (which `output_hidden_states` would apply).
    Each lies on the device of its layer; what stands at padding means nothing. The model's
    modes and hooks are restored at the end.

    Raises:
        ArchitectureError: The layers cannot be found, or the model did not run each of them once.
    """
    layers = loaded.layers
    states: dict[int, Tensor] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_eval_mode(loaded.model))
        for depth, layer in enumerate(layers):
            entered = layer.register_forward_pre_hook(_entering(states, depth), with_kwargs=True)
            stack.callback(entered.remove)
        left = layers[-1].register_forward_hook(_leaving(states, len(layers)))
        stack.callback(left.remove)

        def read(batch: Batch) -> tuple[Tensor, ...]:
            states.clear()
            # No mask: padding on the right is never seen by what comes before it, while rows
            # that a mask and a sliding window leave nothing to see turn to NaN and spread.
            loaded.backbone(input_ids=batch.ids.to(loaded.device), use_cache=False)
            if len(states) != len(layers) + 1:
                raise ArchitectureError(
                    f"{loaded.facts.source} ran {max(len(states) - 1, 0)} of its {len(layers)} "
                    "layers: its states cannot be measured"
                )
            found = tuple(states[depth] for depth in range(len(layers) + 1))
            states.clear()
            return found

        yield read


def _entering(states: dict[int, Tensor], depth: int) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states[depth] = args[0] if args else kwargs["hidden_states"]

    return hook


def _leaving(states: dict[int, Tensor], depth: int) -> Callable[..., None]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor | tuple[Any, ...]) -> None:
        states[depth] = output if isinstance(output, Tensor) else output[0]

    return hook
