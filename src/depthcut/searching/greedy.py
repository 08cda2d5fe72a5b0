"""One layer at a time, or one block: what went never comes back. And one block alone."""

from collections.abc import Iterator

from depthcut.errors import PlanError
from depthcut.searching.asked import Asked
from depthcut.searching.trials import Removed, Trials


def greedy(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """Take the layer away whose removal costs least, then measure all anew, and so on.

    The method of SLEB (Song et al. 2024, arXiv:2402.09025). There the loss decides; here it is
    the objective that is asked for.
    """
    removed: Removed = ()
    while len(removed) < asked.most:
        trials.start_from(removed)
        removed = trials.best(with_one_more(removed, asked))
        yield removed


def greedy_block(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """The same with blocks: the best choice of n - b layers, and one block of b more.

    Every b up to `largest_block` is tried for every n, and the best of them goes on. A block is of
    consecutive layers of what is left, so it may reach over a gap. With blocks of one layer it is
    greedy; a single block of n layers is among the choices as long as it is not too large.
    """
    chosen: list[Removed] = [()]
    for count in range(1, asked.most + 1):
        trials.start_from(chosen[-1])
        best = trials.best(
            candidate
            for size in range(1, min(asked.largest_block, count) + 1)
            for candidate in _with_one_block(chosen[count - size], size, trials, asked)
        )
        chosen.append(best)
        yield best


def block(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """The best single block of each number of layers.

    The shape of cut of Gromov et al. 2024 (arXiv:2403.17887), chosen by its cost instead of by an
    angle.

    Raises:
        PlanError: The layers that stay leave no block so large.
    """
    sizes = {size: list(_with_one_block((), size, trials, asked)) for size in asked.counts}
    if none := [size for size, blocks in sizes.items() if not blocks]:
        raise PlanError(
            f"no block of {none[0]} layers leaves the protected layers {asked.settings.protect}: "
            "protect fewer, drop fewer, or choose --method exact, which takes several blocks"
        )
    trials.start_from(())
    for blocks in sizes.values():
        yield trials.best(blocks)


def with_one_more(removed: Removed, asked: Asked) -> list[Removed]:
    """A choice with each of the other layers that may go."""
    return [tuple(sorted((*removed, layer))) for layer in asked.free if layer not in removed]


def _with_one_block(removed: Removed, size: int, trials: Trials, asked: Asked) -> Iterator[Removed]:
    left, free = trials.without(removed), frozenset(asked.free)
    for start in range(len(left) - size + 1):
        block = left[start : start + size]
        if free.issuperset(block):
            yield tuple(sorted((*removed, *block)))
