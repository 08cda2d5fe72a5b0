"""Whether this process is one of several that a launcher started, as the environment says it."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """Which process this is."""

    rank: int = 0
    """Counted from 0 over all machines. The first one writes and prints."""
    count: int = 1
    local_rank: int = 0
    """Counted from 0 on this machine."""
    local_count: int = 1


def launched() -> Launched:
    """This process among those that `accelerate launch` or `torchrun` started with it."""
    count = _number("WORLD_SIZE", 1)
    if count < 2 or "RANK" not in os.environ:
        return Launched()
    return Launched(
        _number("RANK", 0), count, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    )


def _number(name: str, otherwise: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else otherwise
