"""The best choices of layers where scores add up, exactly. No torch."""

from collections.abc import Sequence

from depthcut.records import Block, Scope, merged

_Choice = tuple[float, tuple[Block, ...]]


def best_choices(
    scores: Sequence[Sequence[float]],
    count: int,
    *,
    scope: Scope,
    protected: frozenset[int] = frozenset(),
    blocks: int = 1,
    most: int = 1,
) -> list[tuple[Block, ...]]:
    """The best choices of `count` layers, ascending by summed score, by dynamic programming.

    A state is (position, layers still to go, blocks still allowed); every choice is one path
    through the states, so keeping the best few at each state loses none of them. Two blocks
    have a kept layer between them, else they are one block with a score of its own.

    Args:
        scores: scores[start][size - 1] of each block; of scope layer one of each start. Rows may
            end early: larger blocks are no choice.
        count: How many layers go.
        scope: block where blocks have scores of their own; else single layers only.
        protected: Layers that stay.
        blocks: At most so many separate blocks, of scope block.
        most: How many choices.

    Returns:
        Each as the fewest blocks; none where no choice is possible.
    """
    layers = len(scores)
    if scope == "block" and blocks == 1:
        alone = [
            (row[count - 1], (start, start + count))
            for start, row in enumerate(scores)
            if len(row) >= count and protected.isdisjoint(range(start, start + count))
        ]
        return [(block,) for _, block in sorted(alone)[:most]]
    apart, allowed_blocks = (1, blocks) if scope == "block" else (0, 1)
    known: dict[tuple[int, int, int], list[_Choice]] = {}

    def best(position: int, left: int, allowed: int) -> list[_Choice]:
        if left == 0:
            return [(0.0, ())]
        if position >= layers or allowed == 0 or left > layers - position:
            return []
        return known[position, left, allowed]

    for position in reversed(range(layers)):
        for left in range(1, min(count, layers - position) + 1):
            for allowed in range(1, allowed_blocks + 1):
                options = list(best(position + 1, left, allowed))
                for size, score in enumerate(scores[position][:left], start=1):
                    if position + size - 1 in protected:
                        break
                    stop = position + size
                    options += [
                        (score + rest, ((position, stop), *chosen))
                        for rest, chosen in best(stop + apart, left - size, allowed - apart)
                    ]
                known[position, left, allowed] = sorted(options)[:most]
    return [
        merged(layer for block in chosen for layer in range(*block))
        for _, chosen in best(0, count, allowed_blocks)
    ]
