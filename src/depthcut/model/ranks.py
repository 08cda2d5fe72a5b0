"""Several processes that measure one model together, on as many GPUs or machines as there are.

Every process runs the same lines. Batches are dealt out whole, so that each is computed as it
would be in one process, and what was found is told to all, in order: all come to the same record.
"""

import atexit
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import TypeVar, cast

import torch
from torch import Tensor, distributed

from depthcut.errors import RanksError
from depthcut.launched import launched

_PATIENCE = timedelta(hours=2)
"""To wait for the slowest process; one that died is known at once, by its launcher."""

T = TypeVar("T")


class Ranks:
    """This process among its like. What it tells, all tell at the same line, or all wait."""

    def __init__(
        self, rank: int = 0, count: int = 1, group: "distributed.ProcessGroup | None" = None
    ) -> None:
        self.rank, self.count, self._group = rank, count, group

    def takes(self, number: int) -> bool:
        """Whether a batch of this number is for this process: always the same one."""
        return number % self.count == self.rank

    def everywhere(self, value: T) -> list[T]:
        """What each process says, by rank.

        Raises:
            RanksError: Another process ended.
        """
        if self.count == 1:
            return [value]
        said: list[T | None] = [None] * self.count
        try:
            distributed.all_gather_object(said, value, group=self._group)
        except RuntimeError as error:
            raise self._ended() from error
        return cast(list[T], said)

    def of_first(self, value: T) -> T:
        """What the first process says."""
        if self.count == 1:
            return value
        said = [value]
        try:
            distributed.broadcast_object_list(said, src=0, group=self._group)
        except RuntimeError as error:
            raise self._ended() from error
        return said[0]

    def in_order(self, found: Mapping[int, T]) -> dict[int, T]:
        """What all processes found, by number, ascending."""
        if self.count == 1:
            return dict(found)
        every = {number: each for some in self.everywhere(found) for number, each in some.items()}
        return {number: every[number] for number in sorted(every)}

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device of `values`."""
        if self.count == 1:
            return values
        total = values.cpu().clone()
        try:
            distributed.all_reduce(total, group=self._group)
        except RuntimeError as error:
            raise self._ended() from error
        return total.to(values.device)

    def refuse_different(self, value: object, what: str) -> None:
        """Refuse processes that do not measure the same.

        Raises:
            RanksError: `value` differs; `what` names it.
        """
        for rank, other in enumerate(self.everywhere(value)):
            if other != value:
                raise RanksError(
                    f"process {self.rank} and process {rank} of {self.count} have another {what}: "
                    "start all of them with the same command, models and texts"
                )

    def _ended(self) -> RanksError:
        return RanksError(
            f"process {self.rank} of {self.count} waited for another one that ended: see its "
            "message, or that of its machine"
        )


ALONE = Ranks()


@cache
def all_ranks() -> Ranks:
    """This process and those started with it, joined the first time; where it is alone, ALONE.

    What they tell each other is on the CPU, by gloo: GPUs only compute, and two processes may
    share one.
    """
    if launched().count == 1:
        return ALONE
    from accelerate import PartialState  # type: ignore[import-untyped]

    joined = distributed.is_initialized()
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    if not joined:
        atexit.register(distributed.destroy_process_group)
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    return Ranks(state.process_index, state.num_processes, group)
