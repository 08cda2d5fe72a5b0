"""Blocks of layers, half open, counted from 0, and what people call them."""

import re
from collections.abc import Iterable, Sequence

from depthcut.errors import PlanError, SettingsError

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


def layer_set(text: str, layers: int) -> tuple[int, ...]:
    """The layers in a list such as "12-18,22" (both ends included), sorted.

    Raises:
        SettingsError: Not such a list.
        PlanError: A layer that the model does not have.
    """
    found: set[int] = set()
    for part in filter(None, re.split(r"[,\s]+", text)):
        match = re.fullmatch(r"(\d+)(?:[-–](\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise SettingsError(f"{part!r} names no layers: write them as 12-18,22, counted from 0")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    if found and max(found) >= layers:
        raise PlanError(
            f"there is no layer {max(found)}: the model has {layers}, numbered 0 to {layers - 1}"
        )
    return tuple(sorted(found))


def layer_counts(text: str, layers: int, *, setting: str = "drop") -> tuple[int, ...]:
    """The numbers of layers in 7, 25%, 1:12 or 1:25% (both ends included) or 1,3,5, ascending.

    Shares of the layers are rounded down. Errors name the setting that the text was given for.

    Raises:
        SettingsError: Not such a number, share, range or list.
        PlanError: None or all of the layers.
    """
    found: set[int] = set()
    for part in filter(None, re.split(r"[,\s]+", text)):
        ends = [_layer_count(end, layers) for end in part.split(":")]
        counts = [end for end in ends if end is not None]
        if len(counts) < len(ends) or len(ends) > 2 or counts[-1] < counts[0]:
            raise SettingsError(
                f"{setting} {text}: write a number of layers (7), a share (25%) or a range (1:12)"
            )
        found.update(range(counts[0], counts[-1] + 1))
    if not found or min(found) < 1:
        raise PlanError(
            f"{setting} {text}: removes none of the {layers} layers; ask for at least one"
        )
    if max(found) >= layers:
        raise PlanError(
            f"{setting} {text}: removes {max(found)} of {layers} layers; at least one must stay, "
            f"so {setting} at most {layers - 1}"
        )
    return tuple(sorted(found))


def _layer_count(text: str, layers: int) -> int | None:
    """7 or a share such as 25%; None: neither."""
    match = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", text)
    if match is None:
        return None
    return int(match[1]) if match[1] else int(layers * float(match[2]) / 100 + 1e-9)
