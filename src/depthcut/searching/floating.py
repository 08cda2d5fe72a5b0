"""One layer at a time, with second thoughts: layers that went may come back."""

from collections.abc import Iterator

from depthcut.searching.asked import Asked
from depthcut.searching.greedy import with_one_more
from depthcut.searching.trials import Removed, Trials


def floating(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """Greedy steps; after each, layers are put back while that beats what was known.

    Sequential floating backward selection (Pudil, Novovičová and Kittler, Floating search methods
    in feature selection, Pattern Recognition Letters 15, 1994), on the layers that are kept. A
    choice of n layers is replaced only by a better one of n layers, so the search ends. Where a
    step leads to a worse choice than is known of that number, it goes on from the known one.
    """
    known: dict[int, Removed] = {}
    removed: Removed = ()
    while len(removed) < asked.most:
        removed = _better(with_one_more(removed, asked), removed, known, trials)
        yield removed
        while len(removed) - 1 in known:
            fewer = _better(_with_one_less(removed), removed, known, trials)
            if fewer == known[len(fewer)]:
                break
            known[len(removed)], known[len(fewer)] = removed, fewer
            removed = fewer
            yield removed
        known[len(removed)] = removed


def _better(
    candidates: list[Removed], start: Removed, known: dict[int, Removed], trials: Trials
) -> Removed:
    """The best of the candidates, unless the one that is known of their number is as good."""
    trials.start_from(start)
    before = known.get(len(candidates[0]))
    found = trials.best([*([before] if before else []), *candidates])
    # By the whole text: were it only as far as they were read, the search might go in circles.
    return found if before is None or trials.mean(found) < trials.mean(before) else before


def _with_one_less(removed: Removed) -> list[Removed]:
    return [removed[:place] + removed[place + 1 :] for place in range(len(removed))]
