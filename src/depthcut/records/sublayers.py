"""Attention and MLP of a layer, as places where a layer may lose one of them."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from depthcut.errors import PlanError, SettingsError
from depthcut.records.base import Record
from depthcut.records.blocks import Block, layers_in_words, merged

LayerPart = Literal["attention", "mlp"]
PARTS: tuple[LayerPart, LayerPart] = ("attention", "mlp")
"""In the order in which they are counted. Parallel ones are counted so too."""

_NAMES = {"attention": "attention", "mlp": "MLP"}
_PLACE = re.compile(r"(\d+)(?:[-–](\d+))?(?:\.(attention|mlp))?")


class Sublayer(Record, frozen=True, kw_only=True):
    """One part of a layer."""

    layer: int
    part: LayerPart

    @property
    def unit(self) -> int:
        """Its number among all: those of layer 0, those of layer 1 …"""
        return 2 * self.layer + PARTS.index(self.part)


def sublayers_of(units: Iterable[int]) -> tuple[tuple[Block, ...], tuple[Sublayer, ...]]:
    """Blocks of the layers of which both parts are meant, and the other parts, both ascending."""
    every = sorted(set(units))
    layers = {unit // 2 for unit in every if unit ^ 1 in every}
    alone = (unit for unit in every if unit // 2 not in layers)
    parts = tuple(Sublayer(layer=unit // 2, part=PARTS[unit % 2]) for unit in alone)
    return merged(layers), parts


def units_of(blocks: Iterable[Block], parts: Iterable[Sublayer]) -> tuple[int, ...]:
    """The numbers of all parts of the layers in some blocks, and of further parts, ascending."""
    whole = [unit for start, stop in blocks for unit in range(2 * start, 2 * stop)]
    return tuple(sorted({*whole, *(each.unit for each in parts)}))


def unit_set(text: str, layers: int) -> tuple[int, ...]:
    """The parts in a list such as "12-18,20.attention,21-23.mlp"; a layer alone means both.

    Raises:
        SettingsError: Not such a list.
        PlanError: A layer that the model does not have.
    """
    found: set[int] = set()
    for name in filter(None, re.split(r"[,\s]+", text)):
        match = _PLACE.fullmatch(name)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise SettingsError(
                f"{name!r} names no layers: write them as 12-18,22, counted from 0, and parts of "
                "them as 20.attention or 21-23.mlp"
            )
        last = int(match[2] or match[1])
        if last >= layers:
            raise PlanError(
                f"there is no layer {last}: the model has {layers}, numbered 0 to {layers - 1}"
            )
        for layer in range(int(match[1]), last + 1):
            found.update(
                2 * layer + number for number, part in enumerate(PARTS) if match[3] in (None, part)
            )
    return tuple(sorted(found))


def removal_in_words(removed: Sequence[Block], zeroed: Sequence[Sublayer]) -> str:
    """What goes, for people: "layers 3–5 (3 layers); attention of layers 12, 14"."""
    if removed and zeroed:
        return f"{layers_in_words(removed)}; {sublayers_in_words(zeroed)}"
    return sublayers_in_words(zeroed) if zeroed else layers_in_words(removed)


def sublayers_in_words(parts: Sequence[Sublayer]) -> str:
    """Parts for people: "attention of layers 12, 14; MLP of layer 20"."""
    words = []
    for part in PARTS:
        spans = merged(each.layer for each in parts if each.part == part)
        names = [
            str(start) if stop - start == 1 else f"{start}–{stop - 1}" for start, stop in spans
        ]
        many = sum(stop - start for start, stop in spans) > 1
        if names:
            words.append(f"{_NAMES[part]} of layer{'s' * many} {', '.join(names)}")
    return "; ".join(words)
