"""Blocks of layers, half open, counted from 0, and what people call them."""

from collections.abc import Iterable, Sequence

Block = tuple[int, int]
"""Consecutive layers [start, stop), counted from 0."""


def merged(layers: Iterable[int]) -> tuple[Block, ...]:
    """Layers as the fewest blocks [start, stop), ascending."""
    blocks: list[Block] = []
    for layer in sorted(set(layers)):
        if blocks and blocks[-1][1] == layer:
            blocks[-1] = (blocks[-1][0], layer + 1)
        else:
            blocks.append((layer, layer + 1))
    return tuple(blocks)


def layers_in_words(blocks: Sequence[Block]) -> str:
    """Blocks for people, both ends included: "layers 3–5 and 12 (4 layers)"."""
    spans = [str(start) if stop - start == 1 else f"{start}–{stop - 1}" for start, stop in blocks]
    count = sum(stop - start for start, stop in blocks)
    if not count:
        return "no layer (0 layers)"
    names = " and ".join(filter(None, [", ".join(spans[:-1]), *spans[-1:]]))
    return f"layer {names} (1 layer)" if count == 1 else f"layers {names} ({count} layers)"
