import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcut.searching.evolve import evolve
from depthcut.searching.greedy import greedy
from depthcut.searching.trials import Removed
from tests.searching.searches_for_tests import (
    BATCH,
    Landscape,
    WholeForwards,
    asked,
    layers_of,
    search,
    settings,
    some_text,
    tiny,
    trials,
)

PUBLISHED = {"first_generation": "random", "initially_generated": 6, "offspring": 5}
TOKENS = [12 if number % 3 else 6 for number in range(16)]
"""Of each sequence of the text."""


class EvoPress:
    """Algorithm 1 of EvoPress with level switches between dropped and kept, in plain lines.

    It draws in the order in which depthcut draws, and runs whole models without the layers.
    """

    def __init__(self, costs: WholeForwards, layers: int, count: int, draw: random.Random) -> None:
        self.costs, self.layers, self.count, self.draw = costs, layers, count, draw
        self.parents: list[list[bool]] = []

    def fittest(self, states: list[list[bool]], tokens: int, keep: int) -> list[list[bool]]:
        batches, total = [], 0
        for number in self.draw.sample(range(4), 4):
            if total < tokens:
                batches.append(number)
                total += sum(TOKENS[number * BATCH : (number + 1) * BATCH])
        fitness = [self.costs.cost(dropped(state), "kl", sorted(batches)) for state in states]
        ranking = sorted(range(len(states)), key=lambda place: fitness[place])
        return [states[place] for place in ranking[:keep]]

    def mutant(self, parent: list[bool], most: int) -> list[bool]:
        state = list(parent)
        for _ in range(min(self.draw.randint(1, most), self.draw.randint(1, most))):
            kept = [layer for layer in range(self.layers) if not state[layer]]
            gone = [layer for layer in range(self.layers) if state[layer]]
            drop, restore = self.draw.choice(kept), self.draw.choice(gone)
            state[drop], state[restore] = True, False
        return state

    def run(
        self, *, initial: int, initial_tokens: int, generations: int, offspring: int,
        survivors: tuple[int, ...], tokens: tuple[int, ...], mutations: int,
    ) -> Removed:  # fmt: skip
        states: list[list[bool]] = []
        while len(states) < initial:
            chosen = self.draw.sample(range(self.layers), self.count)
            state = [layer in chosen for layer in range(self.layers)]
            if state not in states:
                states.append(state)
        (parent,) = self.fittest(states, initial_tokens, 1)
        self.parents.append(parent)
        for _ in range(generations):
            children: list[list[bool]] = []
            while len(children) < offspring:
                child = self.mutant(parent, mutations)
                if child != parent and child not in children:
                    children.append(child)
            for step, (keep, read) in enumerate(zip(survivors, tokens, strict=True)):
                if step == len(survivors) - 1:
                    children.append(parent)
                children = self.fittest(children, read, keep)
            parent = children[0]
            if parent != self.parents[-1]:
                self.parents.append(parent)
        return dropped(parent)


def dropped(state: list[bool]) -> Removed:
    return tuple(layer for layer, gone in enumerate(state) if gone)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("survivors", "tokens"),
    [((2, 1), (50, 1000)), ((3, 2, 1), (40, 90, 130)), ((1,), (60,))],
)
def test_it_finds_what_the_published_algorithm_finds(
    seed: int, survivors: tuple[int, ...], tokens: tuple[int, ...]
) -> None:
    costs = WholeForwards(tiny(8), some_text())
    oracle = EvoPress(costs, 8, 3, random.Random(seed))
    found = oracle.run(
        initial=6, initial_tokens=50, generations=6, offspring=5, survivors=survivors,
        tokens=tokens, mutations=3,
    )  # fmt: skip
    changes = {
        **PUBLISHED,
        "initial_tokens": 50,
        "generations": 6,
        "survivors_per_selection": survivors,
        "tokens_per_selection": tokens,
        "seed": seed,
    }
    with trials(layers=8) as (real, _):
        parents = list(evolve(real, asked([3], range(8), **changes)))
    assert parents == [dropped(parent) for parent in oracle.parents]
    assert parents[-1] == found
    if tokens[-1] >= sum(TOKENS):  # then selection is by what the record is by
        record = search("evolve", layers=8, drop=3, **changes)
        assert layers_of(record) == [found]


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(1, 4), st.integers(1, 40))
def test_mutants_have_as_many_layers_are_all_different_and_none_is_protected(
    seed: int, count: int, swaps: int, offspring: int
) -> None:
    free = (0, 2, 3, 5, 6, 7, 9)
    generations: list[list[Removed]] = []

    class Watched(Landscape):
        def ranked(self, candidates, batches):  # type: ignore[no-untyped-def]
            generations.append(list(candidates))
            return super().ranked(candidates, batches)

    options = {"generations": 3, "offspring": offspring, "max_mutations": swaps, "seed": seed}
    every = {**PUBLISHED, **options, "survivors_per_selection": (3, 1)}
    landscape = Watched(10, lambda removed: math.sin(sum(removed)))
    parent, *_ = evolve(landscape, asked([count], free, **every))
    for first, last in zip(generations[1::2], generations[2::2], strict=True):
        assert len(set(first)) == len(first) <= offspring
        for mutant in first:
            assert len(set(mutant)) == count
            assert set(mutant) <= set(free)
        assert set(last[:-1]) <= set(first)
        assert last[-1] not in first
    assert len(parent) == count


def test_a_parent_gives_way_only_to_one_as_good() -> None:
    landscape = Landscape(9, lambda removed: math.sin(7 * sum(removed) + len(removed)))
    for first in ("random", "greedy"):
        parents = list(evolve(landscape, asked([4], range(9), first_generation=first)))
        costs = [landscape.mean(each) for each in parents if len(each) == 4]
        assert costs == sorted(costs, reverse=True)


def test_from_a_greedy_beginning_it_finds_what_greedy_misses() -> None:
    def cost(removed: Removed) -> float:
        return 0.0 if removed == (3, 5) else 1.0 + sum(removed) + len(removed)

    landscape = Landscape(8, cost)
    options = asked([2], range(8), generations=20)
    assert list(greedy(landscape, options))[-1] == (0, 1)
    found = list(evolve(landscape, options))
    assert found[0] == (0,)  # on the way
    assert found[-1] == (3, 5)


def test_as_many_generations_are_bred_as_were_published_unless_told() -> None:
    bred = []

    class Counting(Landscape):
        def start_from(self, removed: Removed) -> None:
            bred.append(removed)

    list(evolve(Counting(9, sum), asked([4], range(9), first_generation="random")))
    assert len(bred) == int(4 * 5 / 1.5)
    assert settings().generations is None
