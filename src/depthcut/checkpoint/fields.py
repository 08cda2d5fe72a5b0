"""The ways in which a config speaks of its layers, and how each is cut.

Each kind is a small immutable description with one method, `cut`, that makes this field of a
config fit the kept layers. A cut that the field cannot say raises
ArchitectureError; whoever asked looks for a nearby cut that it can.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from depthcut.errors import ArchitectureError

Config = Mapping[str, object]
Rule = Callable[[Config, int], list[str]]
"""What a config class fills a missing list with: (config, number of layers) -> one entry each."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which of the layers stay."""

    layers: int
    """How many there were."""
    kept: tuple[int, ...]
    """Ascending."""

    @property
    def only_trailing(self) -> bool:
        """Whether every kept layer keeps its index."""
        return self.kept == tuple(range(len(self.kept)))


class Field(Protocol):
    """One thing that a config says about its layers."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The config's keys that it is responsible for."""

    def cut(self, config: Config, current: Config, cut: Cut) -> dict[str, object]:
        """`current`, a copy of the whole model's `config` in which other fields may be cut already,
        with this field cut too. Raises ArchitectureError where that is impossible."""


@dataclass(frozen=True, slots=True)
class PerLayerList:
    """A list with one entry for each layer, such as layer_types.

    Where the config leaves the list out and its class fills it in (`default`), the list is
    written out as soon as the class would fill in another one for the layers that stay.
    """

    key: str
    default: Rule | None = None
    sources: tuple[str, ...] = ()
    """Keys that `default` reads and that are dropped once they no longer tell the truth."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def cut(self, config: Config, current: Config, cut: Cut) -> dict[str, object]:
        result = dict(current)
        entries = config.get(self.key)
        if entries is None and self.default is None:
            return result
        if entries is None and self.default is not None:
            entries = self.default(config, cut.layers)
        if not isinstance(entries, list) or len(entries) != cut.layers:
            found = f"{len(entries)} entries" if isinstance(entries, list) else repr(entries)
            raise ArchitectureError(
                f"config.json: {self.key} must be a list of {cut.layers} entries, one for each "
                f"layer, found {found}; correct the config"
            )
        kept = [entries[layer] for layer in cut.kept]
        holds = self.default is not None and self.default(result, len(kept)) == kept
        if self.key in config or not holds:
            result[self.key] = kept
        if not holds:
            for source in self.sources:
                result.pop(source, None)
        return result


@dataclass(frozen=True, slots=True)
class IndexMap:
    """An object whose keys are layers."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def cut(self, config: Config, current: Config, cut: Cut) -> dict[str, object]:
        result = dict(current)
        entries = config.get(self.key)
        if entries is None:
            return result
        if not isinstance(entries, dict) or not all(name.isdecimal() for name in entries):
            raise ArchitectureError(
                f"config.json: {self.key} must be an object whose keys are layers, counted from 0"
            )
        by_layer = {int(name): value for name, value in entries.items()}
        result[self.key] = {
            str(new): by_layer[old] for new, old in enumerate(cut.kept) if old in by_layer
        }
        return result


@dataclass(frozen=True, slots=True)
class LeadingCount:
    """How many of the first layers are of one kind, such as max_window_layers.

    Any cut can be said: as many of them stay as are kept. A number beyond the last layer stays.
    """

    key: str
    default: int | None = None
    """What the config class assumes where the key is missing."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def cut(self, config: Config, current: Config, cut: Cut) -> dict[str, object]:
        result = dict(current)
        count = config.get(self.key)
        if count is None:
            count = self.default
        if count is None:
            return result
        if type(count) is not int:
            raise ArchitectureError(f"config.json: {self.key} must be a number, found {count!r}")
        if count < cut.layers:
            result[self.key] = sum(layer < count for layer in cut.kept)
        return result


@dataclass(frozen=True, slots=True)
class PeriodWithExceptions:
    """Every so-manieth layer is sparse (period p: layers p-1, 2p-1, ...), except those listed.

    Any cut can be said: where the period no longer holds it becomes 1, and the list takes
    the rest.
    """

    period: str
    exceptions: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.period, self.exceptions)

    def cut(self, config: Config, current: Config, cut: Cut) -> dict[str, object]:
        result = dict(current)
        period = config.get(self.period, 1)
        if type(period) is not int or period < 1:
            raise ArchitectureError(
                f"config.json: {self.period} must be a positive number, found {period!r}"
            )
        dense = _indices(config, self.exceptions) or set()
        sparse_before = {
            layer for layer in range(cut.layers) if (layer + 1) % period == 0 and layer not in dense
        }
        sparse = {new for new, old in enumerate(cut.kept) if old in sparse_before}
        if any((layer + 1) % period for layer in sparse):
            period = 1
            result[self.period] = period
        exceptions = [
            layer
            for layer in range(len(cut.kept))
            if (layer + 1) % period == 0 and layer not in sparse
        ]
        if exceptions or config.get(self.exceptions):
            result[self.exceptions] = exceptions
        return result


@dataclass(frozen=True, slots=True)
class DependsOnIndex:
    """A switch under which the forward pass computes with the layer's index.

    A kept layer must keep its index then: only the last layers can go.
    """

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def cut(self, config: Config, current: Config, cut: Cut) -> dict[str, object]:
        if config.get(self.key) and not cut.only_trailing:
            raise ArchitectureError(
                f"config.json sets {self.key}: each layer computes with its index, so that a "
                "layer behind a removed one would compute something else"
            )
        return dict(current)


def alternating(key: str | None, default: int) -> Rule:
    """Full attention at every so-manieth layer (`key`'s value, else `default`), else sliding."""

    def rule(config: Config, layers: int) -> list[str]:
        period = default if key is None else config.get(key, default)
        if type(period) is not int or period < 1:
            raise ArchitectureError(
                f"config.json: {key} must be a positive number, found {period!r}"
            )
        kinds: Sequence[str] = ("full_attention", "sliding_attention")
        return [kinds[bool((layer + 1) % period)] for layer in range(layers)]

    return rule


def sliding_from(key: str, default: int) -> Rule:
    """Sliding attention from layer `key` on, if use_sliding_window is set; else full."""

    def rule(config: Config, layers: int) -> list[str]:
        window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
        first = config.get(key)
        start = first if type(first) is int else default
        return [
            "full_attention" if window is None or layer < start else "sliding_attention"
            for layer in range(layers)
        ]

    return rule


def _indices(config: Config, key: str) -> set[int] | None:
    named = config.get(key)
    if named is None:
        return None
    if not isinstance(named, list) or not all(type(layer) is int for layer in named):
        raise ArchitectureError(f"config.json: {key} must be a list of layers, found {named!r}")
    return set(named)
