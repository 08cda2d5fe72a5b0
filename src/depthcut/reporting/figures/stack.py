"""The stack of layers before and after the cut, as shapes: what stays flows down, the rest ends."""

from dataclasses import dataclass
from itertools import pairwise

from depthcut.records import Plan, layers_in_words

TOP, BOTTOM, HEIGHT = 34.0, 66.0, 100.0
"""Upper row of layers [0, TOP], ribbons between, lower row [BOTTOM, HEIGHT]."""
MOST_LABELS = 4


@dataclass(frozen=True)
class Label:
    """Text over a removed block."""

    text: str
    place: float
    """Of its middle, in percent of the width."""


@dataclass(frozen=True)
class Stack:
    """SVG paths in a box of `layers` by HEIGHT units."""

    layers: int
    kept: int
    stays: str
    goes: str
    result: str
    ribbons: str
    labels: tuple[Label, ...]

    def free(self, place: float) -> bool:
        """No label near a place, in percent of the width."""
        return all(abs(label.place - place) > 7 for label in self.labels)


def draw_stack(plan: Plan) -> Stack:
    """The shapes for a plan."""
    layers, kept = plan.model.layers, len(plan.kept_layers)
    gap = min(0.0027 * layers, 0.08 if layers <= 48 else 0.04)
    shift = (layers - kept) / 2
    ribbons, at = [], shift
    for each in plan.slices:
        count = each.stop - each.start
        ribbons.append(_ribbon(each.start, each.stop, at, at + count))
        at += count
    return Stack(
        layers=layers,
        kept=kept,
        stays="".join(_bar(layer, 0, TOP, gap) for layer in sorted(set(plan.kept_layers))),
        goes="".join(_bar(layer, 0, TOP, gap) for layer in plan.removed_layers),
        result="".join(_bar(shift + layer, BOTTOM, HEIGHT, gap) for layer in range(kept)),
        ribbons="".join(ribbons),
        labels=_labels(plan),
    )


def _bar(left: float, top: float, bottom: float, gap: float) -> str:
    return f"M{left + gap:g},{top:g}h{1 - 2 * gap:g}v{bottom - top:g}h-{1 - 2 * gap:g}z"


def _ribbon(start: float, stop: float, new_start: float, new_stop: float) -> str:
    middle = (TOP + BOTTOM) / 2
    return (
        f"M{start:g},{TOP:g}C{start:g},{middle:g} {new_start:g},{middle:g} {new_start:g},{BOTTOM:g}"
        f"H{new_stop:g}C{new_stop:g},{middle:g} {stop:g},{middle:g} {stop:g},{TOP:g}z"
    )


def _labels(plan: Plan) -> tuple[Label, ...]:
    """None where they would collide; the caption names the layers anyway."""
    middles = [50 * (start + stop) / plan.model.layers for start, stop in plan.removed]
    near = any(second - first < 18 for first, second in pairwise(middles))
    if len(middles) > MOST_LABELS or near:
        return ()
    return tuple(
        Label(layers_in_words([block]).split(" (")[0].split(" ")[1], min(98.5, max(1.5, middle)))
        for block, middle in zip(plan.removed, middles, strict=True)
    )
