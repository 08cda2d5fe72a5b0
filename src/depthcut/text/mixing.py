"""Several streams in one order, of which every beginning is a fair sample of the mixture."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def interleaved(
    streams: Sequence[Iterator[T]], weights: Sequence[float], *, size: Callable[[T], int]
) -> Iterator[tuple[int, T]]:
    """The streams' items in one order, and which stream each comes from.

    Next comes the item whose middle is due first, at the pace of its stream's weight (with items
    of one size: the order in which Sainte-Laguë gives out seats). So at any place the sizes so far
    are in the proportion of the weights, up to about one item of each stream, and nothing is left
    to chance. Where a stream ends, the others go on among themselves.

    Args:
        streams: Each is read one item ahead, once there is another to choose from.
        weights: Above 0, one for each stream; only their proportion counts.
        size: What the proportion is of.
    """
    reached = [0] * len(streams)
    live = dict(enumerate(streams))
    waiting: dict[int, T] = {}
    while True:
        for which in [each for each in live if each not in waiting]:
            try:
                waiting[which] = next(live[which])
            except StopIteration:
                del live[which]
        if not waiting:
            return
        due = {
            which: (reached[which] + size(item) / 2) / weights[which]
            for which, item in waiting.items()
        }
        which = min(due, key=lambda each: (due[each], each))
        item = waiting.pop(which)
        reached[which] += size(item)
        yield which, item
