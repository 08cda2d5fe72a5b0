"""One layer at a time, from several choices at once."""

from collections.abc import Iterator

from depthcut.searching.asked import Asked
from depthcut.searching.greedy import with_one_more
from depthcut.searching.trials import Removed, Trials


def beam(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """The best `beam_width` choices of n layers, each with one layer more: those of n + 1.

    Beam search over the steps of SLEB (Song et al. 2024, arXiv:2402.09025), greedy with a width of
    1. Choices that several beams lead to are measured once.
    """
    beams: list[Removed] = [()]
    for _ in range(asked.most):
        trials.start_from(beams[0])
        beams = trials.best_few(
            (candidate for removed in beams for candidate in with_one_more(removed, asked)),
            asked.settings.beam_width,
        )
        yield from beams
