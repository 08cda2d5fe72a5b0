"""The names of ways of choosing layers: angular/last, kl-block:2, greedy, random:1. Light."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from depthcut.errors import SettingsError, nearest
from depthcut.searching.methods import METHODS
from depthcut.settings import Objective, Tokens
from depthcut.surveying.criteria import CRITERIA

ALL = "all"
_STATES = ("pairs", "centred pairs", "sequence")
"""What criteria need that take no more than the states of one pass."""
_NAME = re.compile(r"([a-z0-9-]+)(?:/([a-z]+))?(?::(\d+))?")


@dataclass(frozen=True)
class ByCriterion:
    """What a survey's criterion scores lowest."""

    name: str
    criterion: str
    tokens: Tokens
    blocks: int

    @property
    def paper(self) -> str:
        return CRITERIA[self.criterion].paper

    @property
    def group(self) -> str:
        """Criteria of one group are measured by what they share."""
        needs = CRITERIA[self.criterion].needs
        return "states" if needs in _STATES else needs.replace(" ", "-")


@dataclass(frozen=True)
class BySearch:
    """What a search finds."""

    name: str
    method: str
    objective: Objective
    seed: int

    @property
    def paper(self) -> str:
        return METHODS[self.method].paper

    @property
    def looks(self) -> bool:
        """Off: it takes the same layers whatever the model and the text."""
        return METHODS[self.method].looks


AskedWay = ByCriterion | BySearch


def asked_ways(names: Iterable[str], objective: Objective) -> tuple[AskedWay, ...]:
    """The ways of these names, in order, each once.

    Args:
        names: Each a name, or several between commas.
        objective: Of searches whose name says none.

    Raises:
        SettingsError: No such way, or a suffix that it does not take.
    """
    found: dict[str, AskedWay] = {}
    for name in _parted(names):
        for way in _every() if name == ALL else [_way(name, objective)]:
            found.setdefault(way.name, way)
    if not found:
        raise SettingsError(f"no way of choosing: give --criteria some of {_known()}")
    return tuple(found.values())


def _parted(names: Iterable[str]) -> Iterator[str]:
    for each in names:
        yield from filter(None, re.split(r"[,\s]+", each))


def _every() -> list[AskedWay]:
    """Every criterion that needs no more than the states, where it is taken at all tokens."""
    return [
        ByCriterion(name, name, "all", 1)
        for name, criterion in CRITERIA.items()
        if criterion.needs in _STATES
    ]


def _way(name: str, objective: Objective) -> AskedWay:
    match = _NAME.fullmatch(name)
    base, suffix, number = match.groups() if match else (name, None, None)
    if base in CRITERIA:
        return _criterion(name, base, suffix, number)
    if base in METHODS:
        _refuse_suffix(name, suffix, get_args(Objective))
        made_least: Objective = "loss" if suffix == "loss" else "kl" if suffix else objective
        return BySearch(name, base, made_least, int(number or 0))
    known = (*CRITERIA, *METHODS, ALL)
    raise SettingsError(
        f"no way of choosing {name!r}{nearest(base, known)}: give a criterion, with /last or "
        f":BLOCKS if you like, or a search, with /kl, /loss or :SEED: {_known()}"
    )


def _criterion(name: str, base: str, suffix: str | None, number: str | None) -> ByCriterion:
    criterion = CRITERIA[base]
    if criterion.needs == "part":
        raise SettingsError(
            f"{name} ranks {criterion.scope} alone, and a sweep compares choices of whole layers: "
            "leave it out"
        )
    _refuse_suffix(name, suffix, criterion.tokens)
    usual: Tokens = "all" if "all" in criterion.tokens else "last"
    tokens: Tokens = "last" if suffix == "last" else "all" if suffix else usual
    if number is not None and (criterion.scope == "layer" or int(number) < 1):
        why = "scores single layers" if criterion.scope == "layer" else "needs one block at least"
        raise SettingsError(f"{name}: {base} {why}; leave :{number} out")
    plain = base + ("/last" if tokens != usual else "")
    blocks = int(number or 1)
    return ByCriterion(plain + (f":{blocks}" if blocks > 1 else ""), base, tokens, blocks)


def _refuse_suffix(name: str, suffix: str | None, known: Sequence[str]) -> None:
    if suffix is not None and suffix not in known:
        raise SettingsError(f"{name}: /{suffix} means nothing here, /{' or /'.join(known)} does")


def _known() -> str:
    return f"{', '.join(CRITERIA)}; {', '.join(METHODS)}; {ALL}"
