"""What of a model is trained: its layers, as the settings name them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from depthcut.errors import PlanError, SettingsError, nearest
from depthcut.records import Plan
from depthcut.records.blocks import layer_set
from depthcut.settings import HealSettings

_NEAR, _LAST = 2, 3
"""Layers of near-cut (on each side) and of last, where no number is given."""


class Targets(NamedTuple):
    """The layers that are trained, by their numbers in the cut model."""

    layers: frozenset[int]
    head: bool
    """Also the output head, and what it is tied to."""


def targets(settings: HealSettings, count: int, plan: Plan | None) -> Targets:
    """The layers that the settings name.

    Args:
        settings: Their `layers`, or what the method trains without.
        count: Layers of the cut model.
        plan: How it was cut; None: nobody knows.

    Raises:
        SettingsError: A word that names no layers, near-cut where nothing tells the cut, or a head
            that the method cannot train.
        PlanError: A layer that the model does not have.
    """
    if settings.modules != "all" and settings.method in ("full", "partial"):
        raise SettingsError(
            f"--modules {settings.modules} is for lora and qlora: --method {settings.method} "
            "trains all of a layer"
        )
    if settings.layers is None:
        whole = settings.method != "partial"
        last = range(0 if whole else max(0, count - _LAST), count)
        return Targets(frozenset(last), head=settings.method in ("full", "partial"))
    if settings.method == "full":
        raise SettingsError(
            f"--layers {settings.layers} and --method full, which trains all weights: choose "
            "--method partial, or leave --layers out"
        )
    chosen: set[int] = set()
    head = False
    for word in filter(None, re.split(r"[,\s]+", settings.layers)):
        if word == "head":
            head = True
            continue
        chosen.update(_named(word, count, plan))
    if head and settings.method != "partial":
        raise SettingsError(
            "--layers head: low-rank matrices stay off the head, which may be tied to the "
            "embeddings; choose --method partial"
        )
    if not chosen and not head:
        raise SettingsError(f"--layers {settings.layers!r} names no layer: {_EXPECTED}")
    return Targets(frozenset(chosen), head)


_EXPECTED = "expected all, near-cut:2, last:3, 10-13 or head, between commas"


def _named(word: str, count: int, plan: Plan | None) -> Sequence[int]:
    if word == "all":
        return range(count)
    name, _, number = word.partition(":")
    if name not in ("near-cut", "last"):
        if not re.match(r"\d", word):
            advice = nearest(name, ("all", "near-cut", "last", "head"))
            raise SettingsError(f"--layers {word}: {_EXPECTED}{advice}")
        return layer_set(word, count)
    if number and (not number.isdecimal() or not int(number)):
        raise SettingsError(f"--layers {word}: expected a number of layers, such as {name}:2")
    if name == "last":
        return range(max(0, count - int(number or _LAST)), count)
    if plan is None or len(plan.kept_layers) != count:
        raise SettingsError(
            "--layers near-cut: no plan.json beside the weights tells where the cut is; name "
            "layers by number, such as 10-13"
        )
    near, places = int(number or _NEAR), cuts(plan)
    if not places:
        raise PlanError("--layers near-cut: the plan beside the weights removes no layer")
    return [each for each in range(count) if any(-near <= each - place < near for place in places)]


def cuts(plan: Plan) -> tuple[int, ...]:
    """The depths of the cut model at which layers are missing: 0 before its first layer."""
    kept = [-1, *plan.kept_layers, plan.model.layers]
    return tuple(number for number in range(len(kept) - 1) if kept[number + 1] != kept[number] + 1)
