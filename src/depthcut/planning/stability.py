"""How much a choice of layers depends on the text: the same choice on resampled sequences."""

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import mul

from depthcut.choosing import best_choices
from depthcut.records import Block, Rival, Scores, Stability, TextChoice, TextFacts

RESAMPLES = 200
_RIVALS = 5


def stability(
    scores: Scores,
    text: TextFacts,
    choice: tuple[Block, ...],
    *,
    protected: frozenset[int],
    blocks: int,
) -> Stability | None:
    """How often the same layers are chosen on sequences drawn anew (bootstrap, seed 0).

    Args:
        scores: Those that the choice was made by.
        text: Whose sequences they are of.
        choice: The removed layers.
        protected: As in the choice.
        blocks: As in the choice.

    Returns:
        None for a single sequence, which says nothing of others.
    """
    count = sum(stop - start for start, stop in choice)
    columns = _columns(scores, sizes={count} if blocks == 1 else set(range(1, count + 1)))
    sequences = len(next(iter(columns.values()))) if columns else 0
    if sequences < 2:
        return None

    def chosen(weights: Sequence[int]) -> tuple[Block, ...]:
        rows = _means(scores, columns, weights)
        found = best_choices(
            rows, count, scope=scores.scope, protected=protected, blocks=blocks, most=1
        )
        return found[0]

    generator = random.Random(0)
    winners = Counter(chosen(_drawn(generator, sequences)) for _ in range(RESAMPLES))
    same = winners.pop(choice, 0)
    total = same + winners.total()
    overlaps = same + sum(times * _overlap(choice, other) for other, times in winners.items())
    half = sequences // 2
    return Stability(
        resamples=total,
        share=same / total,
        overlap=overlaps / total,
        rivals=tuple(
            Rival(removed=other, share=times / total)
            for other, times in winners.most_common(_RIVALS)
        ),
        halves=(
            chosen([int(place < half) for place in range(sequences)]),
            chosen([int(place >= half) for place in range(sequences)]),
        ),
        texts=tuple(
            TextChoice(source=source, removed=chosen(weights))
            for source, weights in _by_text(text, sequences)
        ),
    )


def _columns(scores: Scores, *, sizes: set[int]) -> dict[tuple[int, int], "array[float]"]:
    """What each sequence says of the blocks that can be chosen, by start and size."""
    samples = array("f", scores.per_sequence)
    width = sum(len(row) for row in scores.mean)
    wanted = {1} if scores.scope != "block" else sizes
    entries = [
        (start, size) for start, row in enumerate(scores.mean) for size in range(1, len(row) + 1)
    ]
    return {
        entry: samples[place::width] for place, entry in enumerate(entries) if entry[1] in wanted
    }


def _means(
    scores: Scores, columns: dict[tuple[int, int], "array[float]"], weights: Sequence[int]
) -> list[list[float]]:
    """Rows as in the scores; blocks that cannot be chosen count as beyond all others."""
    total = sum(weights)
    rows = [[float("inf")] * len(row) for row in scores.mean]
    for (start, size), column in columns.items():
        rows[start][size - 1] = sum(map(mul, weights, column)) / total
    return rows


def _drawn(generator: random.Random, sequences: int) -> list[int]:
    """How often each sequence is drawn, as many times as there are."""
    weights = [0] * sequences
    for place in generator.choices(range(sequences), k=sequences):
        weights[place] += 1
    return weights


def _by_text(text: TextFacts, sequences: int) -> Iterable[tuple[str, list[int]]]:
    """The sequences of each of several texts; nothing for a criterion that scores some only."""
    of_sequences = text.part_of_sequences
    if len(text.parts) < 2 or len(of_sequences) != sequences:
        return
    for number, part in enumerate(text.parts):
        weights = [int(each == number) for each in of_sequences]
        if any(weights):
            yield part.source, weights


def _overlap(first: Sequence[Block], second: Sequence[Block]) -> float:
    """Layers in both, as a share of those in either (Jaccard)."""
    one, other = (
        {layer for block in blocks for layer in range(*block)} for blocks in (first, second)
    )
    return len(one & other) / len(one | other)
