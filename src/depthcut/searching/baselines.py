"""Choices that look at no score: what every other way must beat."""

from collections.abc import Iterator

from depthcut.searching.asked import Asked
from depthcut.searching.trials import Removed, Trials


def last(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """The deepest layers but for the last one.

    The simple heuristic of Gromov et al. 2024 (arXiv:2403.17887). Lu et al. (arXiv:2411.15558)
    find that the last layers, the very last among them, are hard to beat once the rest is
    fine-tuned; here the very last goes only if no other may.
    """
    final = trials.whole[-1]
    deepest = [layer for layer in reversed(asked.free) if layer != final]
    deepest += [final] if final in asked.free else []
    for count in asked.counts:
        yield tuple(sorted(deepest[:count]))


def random(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """Layers in an order drawn by the seed."""
    order = list(asked.free)
    asked.generator().shuffle(order)
    for count in asked.counts:
        yield tuple(sorted(order[:count]))
