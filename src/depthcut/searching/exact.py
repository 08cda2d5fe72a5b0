"""The best sums of what single blocks cost, measured for real."""

from collections.abc import Iterator, Sequence

from depthcut.choosing import best_choices
from depthcut.errors import PlanError
from depthcut.searching.asked import Asked
from depthcut.searching.trials import Removed, Trials


def exact(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """Exact where costs add up: each block is measured alone, and the least sums once more.

    The block form of SLEB's loss (Song et al. 2024, arXiv:2402.09025). Every block of up to
    `largest_block` layers is measured on the whole text; dynamic programming finds the
    `shortlist` sets of separate blocks of each number of layers with the least sums, any number
    of blocks; the best of them by measurement is the choice. Costs of separate blocks rarely add
    up (arXiv:2410.14649), which is why several are measured, and the best single block with them.

    Raises:
        PlanError: More layers than separate blocks of this size can hold.
    """
    blocks = {
        start: [
            tuple(range(start, stop))
            for stop in range(start + 1, start + min(asked.largest_block, asked.most) + 1)
            if set(asked.free).issuperset(range(start, stop))
        ]
        for start in trials.whole
    }
    nothing = [[0.0 for _ in blocks[start]] for start in trials.whole]
    if impossible := [count for count in asked.counts if not _least(nothing, count, 1, asked)]:
        raise PlanError(
            f"no {impossible[0]} layers can go in separate blocks of at most "
            f"{asked.largest_block}: give a higher --largest-block, drop fewer or protect fewer"
        )
    trials.start_from(())
    trials.measure([block for row in blocks.values() for block in row], trials.batches)
    whole = trials.mean(())
    costs = [[trials.mean(block) - whole for block in blocks[start]] for start in trials.whole]
    for count in asked.counts:
        sums = _least(costs, count, asked.settings.shortlist, asked)
        yield trials.best([*sums, *trials.measured(count)[:1]])


def _least(costs: Sequence[Sequence[float]], count: int, most: int, asked: Asked) -> list[Removed]:
    """The least sums of `costs[start][size - 1]` over separate blocks."""
    protected = frozenset(range(len(costs))) - frozenset(asked.free)
    found = best_choices(costs, count, scope="block", protected=protected, blocks=count, most=most)
    return [tuple(layer for block in each for layer in range(*block)) for each in found]
