"""Mutation and selection among choices of the same number of layers."""

import math
import random
from collections.abc import Iterator

from depthcut.choosing import best_choices
from depthcut.searching.asked import Asked
from depthcut.searching.greedy import with_one_more
from depthcut.searching.trials import Removed, Trials

_FEW = 8


def evolve(trials: Trials, asked: Asked) -> Iterator[Removed]:
    """For each number of layers that is asked for, generations of mutants of the best so far.

    The method of EvoPress (Sieberling et al. 2024, arXiv:2410.14649): each generation has
    `offspring` mutants of its parent, in which one to `max_mutations` layers changed places with
    ones that were removed; selection in steps keeps ever fewer of them on ever more tokens, drawn
    anew each time (`survivors_per_selection`, `tokens_per_selection`); in the last step the parent
    stands beside them. A sample is of whole batches, at least as many tokens as are asked for.

    The first parent is as published with `first_generation` random: the best of
    `initially_generated` random choices on `initial_tokens`. With greedy it is the best on the
    text of what came of fewer layers and one layer more, and of the least sums of what single
    layers cost; so each number of layers on the way gets a choice, evolved where it is asked for.
    """
    generator = asked.generator()
    if asked.settings.first_generation == "random":
        for count in asked.counts:
            yield from _evolved(
                _best_of_random(count, trials, asked, generator), trials, asked, generator
            )
        return
    parent: Removed = ()
    for count in range(1, asked.most + 1):
        trials.start_from(parent)
        sums = _least_sums(count, trials, asked) if count in asked.counts else []
        parent = trials.best([*with_one_more(parent, asked), *sums])
        if count not in asked.counts:
            yield parent
            continue
        for better in _evolved(parent, trials, asked, generator):
            parent = better
            yield parent


def _evolved(
    parent: Removed, trials: Trials, asked: Asked, generator: random.Random
) -> Iterator[Removed]:
    """The first parent, and each that took the place of one."""
    settings = asked.settings
    steps = list(zip(settings.survivors_per_selection, settings.tokens_per_selection, strict=True))
    yield parent
    for _ in range(_generations(len(parent), asked)):
        trials.start_from(parent)
        left = _offspring(parent, asked, generator)
        for number, (survivors, tokens) in enumerate(steps, start=1):
            if number == len(steps):
                left = [*left, parent]
            left = trials.ranked(left, trials.sample(tokens, generator))[:survivors]
        if left[0] != parent:
            parent = left[0]
            yield parent


def _offspring(parent: Removed, asked: Asked, generator: random.Random) -> list[Removed]:
    """Mutants, all different, none the parent; as many as there are at most."""
    settings = asked.settings
    removed, kept = len(parent), len(asked.free) - len(parent)
    possible = sum(
        math.comb(removed, swaps) * math.comb(kept, swaps)
        for swaps in range(1, settings.max_mutations + 1)
    )
    found: list[Removed] = []
    while len(found) < min(settings.offspring, possible):
        mutant = _mutant(parent, asked, generator)
        if mutant != parent and mutant not in found:
            found.append(mutant)
    return found


def _mutant(parent: Removed, asked: Asked, generator: random.Random) -> Removed:
    """One to `max_mutations` times a removed layer comes back and another one goes."""
    most = asked.settings.max_mutations
    removed = set(parent)
    for _ in range(min(generator.randint(1, most), generator.randint(1, most))):  # rather few
        goes = generator.choice([layer for layer in asked.free if layer not in removed])
        comes = generator.choice(sorted(removed))
        removed = removed - {comes} | {goes}
    return tuple(sorted(removed))


def _best_of_random(count: int, trials: Trials, asked: Asked, generator: random.Random) -> Removed:
    settings, possible = asked.settings, math.comb(len(asked.free), count)
    found: list[Removed] = []
    while len(found) < min(settings.initially_generated, possible):
        candidate = tuple(sorted(generator.sample(asked.free, count)))
        if candidate not in found:
            found.append(candidate)
    return trials.ranked(found, trials.sample(settings.initial_tokens, generator))[0]


def _least_sums(count: int, trials: Trials, asked: Asked) -> list[Removed]:
    """Where what single layers cost adds up; as far as each of them was read in the first step."""
    rows = [
        [trials.mean((layer,), trials.first_look)] if layer in asked.free else []
        for layer in trials.whole
    ]
    shortlist = best_choices(
        rows,
        count,
        scope="layer",
        protected=frozenset(trials.whole) - frozenset(asked.free),
        most=asked.settings.shortlist,
    )
    return [tuple(layer for block in each for layer in range(*block)) for each in shortlist]


def _generations(count: int, asked: Asked) -> int:
    """As told, else few from a good beginning, and from random ones as many as were published."""
    settings = asked.settings
    if settings.generations is not None:
        return settings.generations
    if settings.first_generation == "greedy":
        return _FEW
    return max(1, int(count * (len(asked.free) - count) / 1.5))
