"""The distances that PruneMe writes, number for number, for comparing with what it found.

What it does and depthcut does not: the state before the first layer is dropped, so no block
starts at layer 0; the last state is taken behind the final norm; the angle is an arccos in the
model's own dtype; a batch gives one number, and the last one counts only if it is full.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.errors import ArchitectureError, SettingsError
from depthcut.model.loading import LoadedModel
from depthcut.surveying.criteria import Criterion
from depthcut.surveying.scores import Rows


class FullBatches:
    """What full batches say, a row each, in PruneMe's way."""

    def __init__(self, criteria: Mapping[str, Criterion], *, batch_size: int) -> None:
        self.rows: Rows = {(name, "last"): [] for name in criteria}
        self._criteria, self._batch_size = criteria, batch_size
        self._normed: Tensor | None = None

    @contextlib.contextmanager
    def watching(self, loaded: LoadedModel) -> Iterator[None]:
        """A context in which the states behind the final norm are seen.

        Raises:
            ArchitectureError: The backbone does not give them.
        """

        def hook(_: nn.Module, __: Any, output: Any) -> None:
            self._normed = getattr(output, "last_hidden_state", None)
            if self._normed is None:
                raise ArchitectureError(
                    f"{loaded.facts.source} does not give its states behind the final norm: leave "
                    f"{next(iter(self._criteria))} out of --criteria"
                )

        handle = loaded.backbone.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
            self._normed = None

    def add(self, states: Sequence[Tensor], lengths: Sequence[int]) -> None:
        """Take the batch that the model has just read: its states at each depth."""
        if self._normed is None or len(lengths) < self._batch_size:
            return
        device = states[0].device
        rows, places = torch.arange(len(lengths)), torch.tensor(lengths) - 1
        seen = (*states[1:-1], self._normed)
        last = [state.to(device)[rows.to(device), places.to(device)] for state in seen]
        for name, criterion in self._criteria.items():
            means = [
                criterion.function(before, after).mean().item()
                for start, before in enumerate(last)
                for after in last[start + 1 :]
            ]
            self.rows[name, "last"].append(torch.tensor(means, dtype=torch.float64))


def full_batches(
    criteria: Mapping[str, Criterion], *, sequences: int, batch_size: int
) -> FullBatches | None:
    """For the criteria that need them, if any is asked for.

    Raises:
        SettingsError: Fewer sequences than a batch holds.
    """
    asked = {name: each for name, each in criteria.items() if each.needs == "full batches"}
    if asked and sequences < batch_size:
        raise SettingsError(
            f"{next(iter(asked))} counts full batches only, and {sequences} sequences fill none of "
            f"{batch_size}: lower --batch-size"
        )
    return FullBatches(asked, batch_size=batch_size) if asked else None
