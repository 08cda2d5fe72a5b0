"""Attention and MLP of each layer, silenced: they add nothing to the residual stream."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.architectures.sublayers import part_modules
from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel, in_eval_mode
from depthcut.records import PARTS, LayerPart

Place = tuple[int, LayerPart]
Silence = Callable[[Collection[Place]], None]
"""Silences some parts, and lets all others speak."""


@contextlib.contextmanager
def silencing(loaded: LoadedModel) -> Iterator[Silence]:
    """A context in which attention or MLP of some layers return zeros; all is restored at its end.

    Raises:
        ArchitectureError: A layer has not exactly one of each, or does more than to add what
            they return to the residual stream.
    """
    valves = {
        (index, part): _Valve(module)
        for index, layer in enumerate(loaded.layers)
        for part, module in _parts(layer, loaded)
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_eval_mode(loaded.model))
        _learn_forms(loaded, valves.values())
        for valve in valves.values():
            stack.enter_context(valve.installed())

        def silence(parts: Collection[Place]) -> None:
            for place, valve in valves.items():
                valve.silent = place in parts

        _refuse_more(loaded, silence, valves)
        silence(())
        yield silence


class _Valve:
    """One module that may return zeros instead of what it computes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.silent = False
        self.form: tuple[int | None, int, torch.dtype] | None = None
        """What it returns: a tuple of so many (None: a tensor alone), its width and dtype."""

    def learn(self, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        count = None if isinstance(output, Tensor) else len(output)
        self.form = count, first.shape[-1], first.dtype

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        own = self.module.__dict__.get("forward")
        inner: Callable[..., Any] = self.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.silent or self.form is None:
                return inner(*args, **kwargs)
            count, width, dtype = self.form
            entering = next(each for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
            zeros = entering.new_zeros(*entering.shape[:-1], width, dtype=dtype)
            return zeros if count is None else (zeros, *[None] * (count - 1))

        self.module.forward = forward
        try:
            yield
        finally:
            if own is None:
                del self.module.forward
            else:
                self.module.forward = own


def _parts(layer: nn.Module, loaded: LoadedModel) -> Iterator[tuple[LayerPart, nn.Module]]:
    try:
        names = part_modules(name for name, _ in layer.named_children())
    except ArchitectureError as error:
        raise ArchitectureError(
            f"layers of {loaded.facts.source} ({loaded.facts.model_type}) have no two parts: "
            f"{error}"
        ) from error
    for part in PARTS:
        yield part, layer.get_submodule(names[part])


def _learn_forms(loaded: LoadedModel, valves: Collection[_Valve]) -> None:
    with contextlib.ExitStack() as stack:
        for valve in valves:

            def see(_: nn.Module, __: Any, output: Any, valve: _Valve = valve) -> None:
                valve.learn(output)

            stack.callback(valve.module.register_forward_hook(see).remove)
        loaded.backbone(input_ids=_probe(loaded), use_cache=False)


def _refuse_more(loaded: LoadedModel, silence: Silence, parts: Collection[Place]) -> None:
    """With all parts silent every layer must return what enters it, to the bit."""
    changed: list[int] = []
    with contextlib.ExitStack() as stack:
        for index, layer in enumerate(loaded.layers):

            def compare(
                _: nn.Module, args: Any, kwargs: Any, output: Any, index: int = index
            ) -> None:
                entered = args[0] if args else kwargs["hidden_states"]
                left = output if isinstance(output, Tensor) else output[0]
                if not torch.equal(entered, left):
                    changed.append(index)

            stack.callback(layer.register_forward_hook(compare, with_kwargs=True).remove)
        silence(parts)
        try:
            loaded.backbone(input_ids=_probe(loaded), use_cache=False)
        except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
            raise _more(loaded, "it cannot do without these") from error
    if changed:
        raise _more(loaded, f"layer {changed[0]} changes the residual stream without them")


def _more(loaded: LoadedModel, why: str) -> ArchitectureError:
    return ArchitectureError(
        f"{loaded.facts.source} ({loaded.facts.model_type}) does more in a layer than to add what "
        f"attention and MLP return ({why}): only whole layers can go"
    )


def _probe(loaded: LoadedModel) -> Tensor:
    return torch.tensor([[1, 0, 2]], device=loaded.device)
