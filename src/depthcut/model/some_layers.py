"""A model run with only some of its layers, from any depth on, by its own code.

Layers are switched by replacing their `forward` for a while: one that is off returns its input.
So masks, rotary embeddings, the final norm and the head are what the model's own code makes
them, on every architecture, and no argument of a layer is ever made by hand.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel, in_eval_mode

Observe = Callable[[int, Tensor], object]
"""Told the state that enters each layer that runs."""


class RunSomeLayers(Protocol):
    """One forward pass over a batch; from within `observe` it may be called again."""

    def __call__(
        self,
        ids: Tensor,
        layers: Sequence[int],
        *,
        entering: Tensor | None = None,
        head: bool = True,
        observe: Observe | None = None,
    ) -> Tensor:
        """Run the embeddings, some layers, and the final norm and head.

        Args:
            ids: (batch, length) int64, padded on the right: no mask is given.
            layers: Which run, ascending. The others are skipped.
            entering: What enters the first of `layers` (the head, if there are none), instead of
                what the embeddings give.
            head: Off: the final norm and the head are not run either.
            observe: Told the state that enters each of `layers`.

        Returns:
            Logits (batch, length, vocabulary) as the model gives them; without the head the
            state that left the last of the layers.
        """


@contextlib.contextmanager
def running_some_layers(loaded: LoadedModel, *, tried: bool = True) -> Iterator[RunSomeLayers]:
    """A context in which a model runs with some of its layers; all is restored at the end.

    Args:
        loaded: The model.
        tried: Off, for a model whose weights come and go: it is not run beforehand. A layer that
            has not run yet is taken to return what the one before it returns, and it is for the
            caller to see that passes in part give what whole ones give.

    Raises:
        ArchitectureError: The layers cannot be found, or pass more from one to the next than
            the residual stream, so that a pass cannot begin between them.
    """
    deepest = len(loaded.layers) - 1
    switches = [
        _Switch(layer, index, last=index == deepest) for index, layer in enumerate(loaded.layers)
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(in_eval_mode(loaded.model))
        if tried:
            _learn_forms(loaded, switches)
        for before, switch in pairwise(switches):
            switch.before = before
        for switch in switches:
            stack.enter_context(switch.installed())

        def run(
            ids: Tensor,
            layers: Sequence[int],
            *,
            entering: Tensor | None = None,
            head: bool = True,
            observe: Observe | None = None,
        ) -> Tensor:
            on, was = frozenset(layers), [(each.on, each.observe) for each in switches]
            for switch in switches:
                switch.on, switch.observe, switch.entering = switch.index in on, observe, None
            first = layers[0] if layers else len(switches) - 1
            switches[first].entering = entering
            last = switches[-1]
            ids = ids.to(loaded.device)
            try:
                if head:
                    logits: Tensor = loaded.model(input_ids=ids, use_cache=False).logits
                    return logits
                loaded.backbone(input_ids=ids, use_cache=False)
                if last.left is None:
                    raise ArchitectureError(f"{loaded.facts.source} did not run its last layer")
                return last.left
            finally:
                last.left = switches[first].entering = None
                for switch, (each_on, each_observe) in zip(switches, was, strict=True):
                    switch.on, switch.observe = each_on, each_observe

        if tried:
            _refuse_side_channels(loaded, run)
        yield run


class _Switch:
    """One layer, on or off."""

    def __init__(self, layer: nn.Module, index: int, *, last: bool) -> None:
        self.layer, self.index, self.last = layer, index, last
        self.on = True
        self.observe: Observe | None = None
        self.entering: Tensor | None = None
        self.left: Tensor | None = None
        """What left the last layer."""
        self.form: int | None = None
        """Of what the layer returns: a tuple of so many, or 0: the state alone. None: unknown."""
        self.before: _Switch | None = None
        """Stands in while the form is unknown."""

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        # accelerate's device hooks replace it too: what stood there is put back.
        own = self.layer.__dict__.get("forward")
        inner: Callable[..., Any] = self.layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            state = args[0] if args else kwargs["hidden_states"]
            if self.entering is not None:
                state = self.entering.to(state.device)
            if not self.on:
                if self.last:
                    self.left = state
                return self.without_running(state)
            if self.observe is not None:
                self.observe(self.index, state)
            if args:
                args = (state, *args[1:])
            else:
                kwargs["hidden_states"] = state
            output = inner(*args, **kwargs)
            self.form = _form_of(output)
            if self.last:
                self.left = _state_of(output)
            return output

        self.layer.forward = forward
        try:
            yield
        finally:
            if own is None:
                del self.layer.forward
            else:
                self.layer.forward = own

    def without_running(self, state: Tensor) -> Any:
        """What the layer would return, with the state that it was given."""
        if self.form is None and self.before is not None:
            return self.before.without_running(state)
        return (state, *[None] * (self.form - 1)) if self.form else state


def _learn_forms(loaded: LoadedModel, switches: Sequence[_Switch]) -> None:
    """Run two tokens through the model to see what each layer returns."""
    with contextlib.ExitStack() as stack:
        for switch in switches:

            def see(_: nn.Module, __: Any, output: Any, switch: _Switch = switch) -> None:
                switch.form = _form_of(output)

            stack.callback(switch.layer.register_forward_hook(see).remove)
        loaded.backbone(input_ids=_probe(loaded), use_cache=False)


def _refuse_side_channels(loaded: LoadedModel, run: RunSomeLayers) -> None:
    """A pass that begins between any two layers must give what the whole one gives."""
    ids, every = _probe(loaded), range(len(loaded.layers))
    entered: list[Tensor] = []
    left: list[Tensor] = []
    with contextlib.ExitStack() as stack:
        for layer in loaded.layers:
            hook = layer.register_forward_hook(lambda *told: left.append(_state_of(told[-1])))
            stack.callback(hook.remove)
        whole = run(ids, every, head=False, observe=lambda _, state: entered.append(state))
    if len(entered) != len(every):
        raise ArchitectureError(
            f"{loaded.facts.source} ran {len(entered)} of its {len(every)} layers: it cannot be "
            "run in part; choose its layers by a survey (depthcut run --quick)"
        )
    handed_on = zip(left, entered[1:], strict=False)
    try:
        alike = all(torch.equal(one.to(other.device), other) for one, other in handed_on) and all(
            torch.equal(run(ids, every[depth:], entering=entered[depth], head=False), whole)
            for depth in every[1:]
        )
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        alike = False  # a layer misses what one that did not run would have left for it
    if not alike:
        raise ArchitectureError(
            f"the layers of {loaded.facts.source} ({loaded.facts.model_type}) pass more to "
            "each other than the residual stream: a pass cannot begin between them; choose layers "
            "by a survey of its states (depthcut run --quick)"
        )


def _form_of(output: Any) -> int:
    return 0 if isinstance(output, Tensor) else len(output)


def _state_of(output: Any) -> Tensor:
    state: Tensor = output if isinstance(output, Tensor) else output[0]
    return state


def _probe(loaded: LoadedModel) -> Tensor:
    return torch.zeros(1, 2, dtype=torch.int64, device=loaded.device)
