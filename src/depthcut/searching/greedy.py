"""One layer at a time."""

from collections.abc import Iterator

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
        removed = trials.best(
            [tuple(sorted((*removed, layer))) for layer in asked.free if layer not in removed]
        )
        trials.start_from(removed)
        yield removed
