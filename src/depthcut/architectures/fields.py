"""The ways in which a config speaks of its layers, and how each is cut.

Each kind of field has two directions. `read` turns what the config says into one value for each
layer. `write` offers configs that may say given values. A cut reads the values, takes those of
the kept layers, and accepts the first offer that reads back as exactly these. So a kind cannot
cut wrongly, at worst it refuses.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from depthcut.architectures.values import (
    Config,
    layer_indices,
    positive,
    value_at,
    whole_number,
    with_value,
)
from depthcut.errors import ArchitectureError, short
from depthcut.records import LayerPart

Values = list[object]
Rule = Callable[[Config, int], Values]
"""(config, number of layers) -> one value for each layer."""
Reader = Callable[[Config, int], Values | None]
"""The same; None: the config says nothing."""
Offers = Callable[[Config, Values], Iterator[Config]]
"""(config, one value for each layer) -> configs that may say so."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which layers the new stack is made of."""

    layers: int
    """How many there were."""
    kept: tuple[int, ...]
    """The old layer of each new one; any order, repeats allowed."""
    extra: int = 0
    """Layers behind the stack that only predict further tokens; they are left out."""
    zeroed: frozenset[tuple[int, LayerPart]] = frozenset()
    """Parts of old layers whose last projection becomes zero."""


class Reference(NamedTuple):
    """A value that points at a layer, and follows it where it goes."""

    layer: int

    def __repr__(self) -> str:
        return f"layer {self.layer}"


class Field(Protocol):
    """One thing that a config says about its layers."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The config's keys that it is responsible for."""

    def read(self, config: Config, layers: int) -> Values | None:
        """One value for each layer; None: the config says nothing.

        Raises ArchitectureError for a value that cannot be understood.
        """

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        """Configs that differ from `config` in this field and may say `values`, best first.

        May raise ArchitectureError behind the last offer, to say why in its own words.
        """


def cut_field(field: Field, config: Config, current: Config, cut: Cut) -> Config:
    """`current`, in which other fields may be cut already, with this field cut too.

    Args:
        field: What is cut.
        config: The whole model's config.
        current: The new model's config so far.
        cut: The layers that stay.

    Raises:
        ArchitectureError: The field cannot be read, or cannot say this cut.
    """
    try:
        before = field.read(config, cut.layers)
        if before is None:
            return current
        wanted = [_carried(before[old], new, cut, field) for new, old in enumerate(cut.kept)]
        for offer in field.write(current, wanted):
            try:
                if field.read(offer, len(wanted)) == wanted:
                    return offer
            except ArchitectureError:
                continue
    except (TypeError, LookupError, ArithmeticError) as error:
        # Rules read lists and numbers as config classes do, which would stumble over these too.
        raise ArchitectureError(
            f"config.json: {' and '.join(field.keys) or 'what it says of the layers'} cannot be "
            f"understood ({error}); correct it"
        ) from error
    raise ArchitectureError(
        f"config.json cannot say this cut: {' and '.join(field.keys)} would have to give "
        f"{short(wanted)} for the layers that stay"
    )


@dataclass(frozen=True, slots=True)
class PerLayerList:
    """A list with one entry for each layer, such as layer_types.

    Where the config leaves the list out and its class fills it in (`default`), the list is
    written out as soon as the class would fill in another one for the layers that stay.
    """

    key: str
    default: Rule | None = None
    sources: tuple[str, ...] = ()
    """Keys that only `default` reads and that are dropped once they no longer tell the truth."""
    longer: bool = False
    """Whether the model takes a list with more entries than there are layers."""
    or_one: bool = False
    """Whether a single value instead of a list holds for all layers."""
    count: str = ""
    """The source that says how many of the first layers are of the kind `counted`."""
    counted: object = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, *self.sources)

    def read(self, config: Config, layers: int) -> Values | None:
        entries = value_at(config, self.key)
        if self._is_missing(entries):
            return None if self.default is None else self.default(config, layers)
        if self.or_one and not isinstance(entries, list):
            return None
        if isinstance(entries, list) and self.longer:
            entries = entries[:layers]
        if not isinstance(entries, list) or len(entries) != layers:
            found = f"{len(entries)} entries" if isinstance(entries, list) else short(entries)
            raise ArchitectureError(
                f"config.json: {self.key} must be a list of {layers} entries, one for each layer, "
                f"found {found}; correct the config"
            )
        return entries

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        if self.count in config:  # other readers may know no list, only how many come first
            same = [value == values[0] for value in values]
            first = len(same) if all(same) else same.index(False)
            lowered = {**config, self.count: first if values[0] == self.counted else 0}
            if self.default is not None and _default(self.default, lowered, values) == values:
                config = lowered
        holds = self.default is not None and _default(self.default, config, values) == values
        if holds and self._is_missing(value_at(config, self.key)):
            yield config
        dropped = () if holds else self.sources
        left = {key: value for key, value in config.items() if key not in dropped}
        yield with_value(left, self.key, values)

    def _is_missing(self, entries: object) -> bool:
        """Config classes take an empty list for none where they fill it in."""
        return entries is None or (entries == [] and self.default is not None)


@dataclass(frozen=True, slots=True)
class IndexList:
    """A list of the layers that are of one kind, such as mlp_only_layers."""

    key: str
    default: Rule | None = None
    """Whether each layer is of that kind where the config has no list."""
    sources: tuple[str, ...] = ()
    """As in PerLayerList."""
    base: int = 0
    """What the list calls the first layer."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, *self.sources)

    def read(self, config: Config, layers: int) -> Values | None:
        named = layer_indices(config, self.key, layers, base=self.base)
        if named is None:
            return None if self.default is None else self.default(config, layers)
        return [layer in named for layer in range(layers)]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        holds = self.default is not None and _default(self.default, config, values) == values
        if holds and value_at(config, self.key) is None:
            yield config
        dropped = () if holds else self.sources
        left = {key: value for key, value in config.items() if key not in dropped}
        named = [layer + self.base for layer, value in enumerate(values) if value]
        yield with_value(left, self.key, named)


@dataclass(frozen=True, slots=True)
class IndexMap:
    """An object whose keys are layers."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        entries = config.get(self.key)
        if entries is None:
            return None
        if not isinstance(entries, dict) or not all(
            isinstance(name, str) and name.isascii() and name.isdecimal() for name in entries
        ):
            raise ArchitectureError(
                f"config.json: {self.key} must be an object whose keys are layers, counted from 0"
            )
        by_layer = {int(name): value for name, value in entries.items() if len(name) < 9}
        return [(layer in by_layer, by_layer.get(layer)) for layer in range(layers)]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        pairs = [value for value in values if isinstance(value, tuple)]
        entries = {str(layer): value for layer, (given, value) in enumerate(pairs) if given}
        yield {**config, self.key: entries}


@dataclass(frozen=True, slots=True)
class LeadingCount:
    """How many of the first layers are of one kind, such as first_k_dense_replace.

    It can say any cut that keeps the order. A number beyond the last layer stays.
    """

    key: str
    default: int | None = None
    """What the config class assumes where the key is missing."""
    switch: str = ""
    """The key without which the number means nothing."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.switch) if self.switch else (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        count = whole_number(config, self.key, self.default)
        if self.switch and not config.get(self.switch):
            return None
        return None if count is None else [layer < count for layer in range(layers)]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        yield {**config, self.key: sum(map(bool, values))}


@dataclass(frozen=True, slots=True)
class Period:
    """Every n-th layer is of another kind: those with layer % period == offset (Jamba).

    Where the kept layers have no period the cut is refused.
    """

    key: str
    default: int
    offset: str
    offset_default: int

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key, self.offset)

    def read(self, config: Config, layers: int) -> Values | None:
        period = positive(config, self.key, self.default)
        offset = whole_number(config, self.offset, self.offset_default) or 0
        return [layer % period == offset for layer in range(layers)]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        hits = [layer for layer, value in enumerate(values) if value]
        period = hits[1] - hits[0] if len(hits) > 1 else len(values) + 1
        first = hits[0] if hits else len(values)
        for choice in dict.fromkeys((period, first + 1)):
            if first < choice:  # the class asks for it
                yield {**config, self.key: choice, self.offset: first}


@dataclass(frozen=True, slots=True)
class PatternString:
    """A string with one character for each layer, such as hybrid_override_pattern."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        pattern = config.get(self.key)
        if pattern is None:
            return None
        if not isinstance(pattern, str) or len(pattern) != layers:
            raise ArchitectureError(
                f"config.json: {self.key} must have {layers} characters, one for each layer, "
                f"found {short(pattern)}"
            )
        return list(pattern)

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield {**config, self.key: "".join(map(str, values))}


@dataclass(frozen=True, slots=True)
class Layout:
    """Several keys that say one thing together.

    `reads` is the rule of the model's code; `writes` offers configs, the unchanged one comes
    first anyway.
    """

    keys: tuple[str, ...]
    reads: Reader
    writes: Offers | None = None
    why: str = ""
    """Why a cut that cannot be said is refused, in a sentence; '': the usual one."""

    def read(self, config: Config, layers: int) -> Values | None:
        return self.reads(config, layers)

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        if self.writes is not None:
            yield from self.writes(config, values)
        if self.why:
            raise ArchitectureError(self.why)


@dataclass(frozen=True, slots=True)
class Requirement:
    """What must hold for the layers that stay, if it held for all.

    Some combinations of layers can be written down, and the model's code cannot run them.
    """

    why: str
    holds: Callable[[Config, int], bool]
    """(config, number of layers)."""
    keys: tuple[str, ...] = ()

    def read(self, config: Config, layers: int) -> Values | None:
        return [True] * layers if self.holds(config, layers) else None

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        raise ArchitectureError(self.why)


@dataclass(frozen=True, slots=True)
class EndStays:
    """The first or the last layer is built otherwise than the others: it must stay at its end."""

    end: Literal["first", "last"]
    what: str
    keys: tuple[str, ...] = ()

    def read(self, config: Config, layers: int) -> Values | None:
        end = 0 if self.end == "first" else layers - 1
        return [layer == end for layer in range(layers)]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        raise ArchitectureError(f"the {self.end} layer must stay the {self.end} one: {self.what}")


@dataclass(frozen=True, slots=True)
class DependsOnIndex:
    """The forward pass computes with the layer's index: a kept layer must keep it.

    `what` says in words what it computes; `key` names the switch in the config that makes it so,
    None where there is none.
    """

    what: str
    key: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return () if self.key is None else (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        return list(range(layers)) if self.key is None or config.get(self.key) else None

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        switch = "" if self.key is None else f"config.json sets {self.key}: "
        raise ArchitectureError(
            f"{switch}{self.what}, so that a layer that gets another index would compute "
            "something else"
        )


@dataclass(frozen=True, slots=True)
class ScaledByDepth:
    """A number that the model divides by the square root of the number of layers.

    It is written anew so that the quotient stays, bit for bit.
    """

    key: str
    default: float | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        scale = config.get(self.key, self.default)
        if scale is None:
            return None
        if not isinstance(scale, int | float):
            raise ArchitectureError(
                f"config.json: {self.key} must be a number, found {short(scale)}"
            )
        return [scale / math.sqrt(layers)] * layers

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        quotient = values[0]
        assert isinstance(quotient, float)
        scale = quotient * math.sqrt(len(values))
        for direction in (math.inf, -math.inf):
            near = scale
            for _ in range(8):
                yield {**config, self.key: near}
                near = math.nextafter(near, direction)


def _named(field: Field) -> str:
    return f" ({' and '.join(field.keys)})" if field.keys else ""


def _carried(value: object, new: int, cut: Cut, field: Field) -> object:
    if not isinstance(value, Reference):
        return value
    before = [index for index in range(new) if cut.kept[index] == value.layer]
    if not before:
        raise ArchitectureError(
            f"layer {cut.kept[new]} uses what layer {value.layer} computes, so that layer "
            f"{value.layer} must stay before it{_named(field)}"
        )
    return Reference(before[-1])


def _default(rule: Rule, config: Config, values: Values) -> Values | None:
    try:
        return rule(config, len(values))
    except ArchitectureError:
        return None
