"""The ways in which GGUF metadata, or llama.cpp without it, speaks of layers.

The kinds of `fields`, for flat metadata: a config maps keys without the architecture's prefix
(`attention.head_count_kv`) to values, arrays are tuples. Blocks behind the decoder's layers
(`nextn_predict_layers`), which predict further tokens, have entries of their own in most arrays.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from depthcut.architectures.fields import Layout, Offers, Reader, Reference, Values
from depthcut.architectures.values import Config
from depthcut.errors import ArchitectureError, short

EXTRA_BLOCKS = "nextn_predict_layers"
_PATTERN = "attention.sliding_window_pattern"
_WINDOW = "attention.sliding_window"
_INDEXERS = "attention.indexer.types"
_RECURRENT = "attention.recurrent_layers"
_INTERVAL = "full_attention_interval"
_SHARED = "attention.shared_kv_layers"


def number(config: Config, key: str, default: int | None = None) -> int | None:
    """The whole number that a config gives, or the default where it gives none.

    Raises:
        ArchitectureError: It gives something else.
    """
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int:
        raise ArchitectureError(f"{key} must be a whole number, found {short(value)}; correct it")
    return value


@dataclass(frozen=True, slots=True)
class PerLayer:
    """An array with one entry for each layer; a single value holds for all.

    The layers that predict further tokens have entries of their own, or none.
    """

    key: str

    why: ClassVar[str] = ""

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        entries = config.get(self.key)
        if not isinstance(entries, tuple):
            return None
        extra = number(config, EXTRA_BLOCKS, 0) or 0
        if len(entries) not in (layers, layers - extra):
            raise ArchitectureError(
                f"{self.key} must have {layers} entries, one for each layer, found "
                f"{len(entries)}; convert the model again"
            )
        return [*entries, *[None] * (layers - len(entries))]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield {**config, self.key: tuple(value for value in values if value is not None)}


def fixed(what: str, reads: Reader, keys: tuple[str, ...] = ()) -> Layout:
    """What llama.cpp makes of a layer's index or of the number of layers, and no metadata says.

    Args:
        what: It, for a sentence.
        reads: (config, number of the decoder's layers) -> what each does; None: nothing.
        keys: What `reads` depends on and that cannot be written anew.
    """
    why = f"llama.cpp fixes {what}, and this cut does not fit that"
    return Layout(keys, _trunk(reads), why=why)


def needed(what: str, reads: Reader) -> Layout:
    """Layers without which llama.cpp stops or does not load the file."""
    return Layout((), _trunk(reads), why=f"llama.cpp needs {what}, which this cut does not leave")


def by_count(what: str, value: Callable[[Config, int], object]) -> Layout:
    """Something that follows from the number of layers, the same for all of them."""
    return fixed(what, lambda config, layers: [value(config, layers)] * layers)


def sliding(period: int | None, *, dense_first: bool = False, always: bool = False) -> Layout:
    """Which layers slide: by an array, a period, or the period that llama.cpp knows.

    A period is cut where another one says the same. At least one layer must slide, or llama.cpp
    stops.

    Args:
        period: What llama.cpp knows; None: an array is required.
        dense_first: Whether the first layer of a period does not slide, instead of the last.
        always: Whether layers slide even where no window is given.
    """

    def reads(config: Config, layers: int) -> Values | None:
        found = slides(config, layers, period, dense_first)
        if found is None or not (always or config.get(_WINDOW)):
            return None
        if not any(found):
            raise ArchitectureError(f"{_PATTERN} lets no layer slide, {_WINDOW} gives a width")
        return found

    def writes(config: Config, values: Values) -> Iterator[Config]:
        if type(config.get(_PATTERN)) is int:
            for other in (0, *_periods([value is False for value in values])):
                yield {**config, _PATTERN: other}

    rule = "an array" if period is None else f"one layer of every {period} does not"
    why = (
        f"which layers slide is fixed ({_PATTERN}; if it is not given, {rule}), at least one must, "
        "and this cut does not fit that"
    )
    return Layout((_PATTERN,), _trunk(reads), writes, why)


def slides(
    config: Config, layers: int, period: int | None, dense_first: bool = False
) -> Values | None:
    """By the array or period of the metadata, else by `period`; None: nobody says."""
    given = config.get(_PATTERN)
    if isinstance(given, tuple):
        return [bool(value) for value in given[:layers]]
    period = number(config, _PATTERN, period)
    if period is None:
        return None
    dense = 0 if dense_first else period - 1
    return [period < 1 or layer % period != dense for layer in range(layers)]


def rotates(step: int) -> Layout:
    """Every n-th layer has no rotary positions."""
    return fixed(
        f"which layers have no rotary positions (every {step}th)",
        lambda _, layers: [bool((layer + 1) % step) for layer in range(layers)],
    )


def llama4_rotates(config: Config, layers: int) -> Values:
    """Without a window llama.cpp takes the number of layers for the period: all but the last."""
    step = layers if config.get(_WINDOW) == 0 else 4
    return [bool((layer + 1) % step) for layer in range(layers)]


def llama4_slides(config: Config, layers: int) -> Values | None:
    """Without a key too: only a window of 0 turns it off."""
    return None if config.get(_WINDOW) == 0 else slides(config, layers, 4)


def smallthinker_rotates(config: Config, layers: int) -> Values:
    """Where the period is the number of layers, all do."""
    step = 4 if config.get(_WINDOW) else layers
    return [step == layers or bool(layer % step) for layer in range(layers)]


def exaone4_slides(config: Config, layers: int) -> Values:
    """In models of 64 layers only, whatever the metadata says."""
    found = slides(config, layers, 4) if layers == 64 else None
    return found or [None] * layers


def deepseek2_kind(config: Config, layers: int) -> tuple[bool, bool]:
    """What llama.cpp guesses from the number of layers."""
    lite = layers in (26, 27) or layers == 48
    return lite, layers in (47, 48) and not config.get("expert_gating_func")


def shared_cache() -> Layout:
    """The last layers use the keys and values of the last two that have their own."""

    def reads(config: Config, layers: int) -> Values:
        own = layers - (number(config, _SHARED, 0) or 0)
        if own < 2:
            raise ArchitectureError(f"{_SHARED}: at least two layers must have keys of their own")
        found = slides(config, layers, None) or [False] * layers
        return [
            False if layer < own else Reference(own - (2 if found[layer] else 1))
            for layer in range(layers)
        ]

    def writes(config: Config, values: Values) -> Iterator[Config]:
        yield {**config, _SHARED: sum(map(bool, values))}

    why = (
        f"{_SHARED}: the last layers use the keys and values of the two before them, one that "
        "slides and one that does not, and this cut does not fit that"
    )
    return Layout((_SHARED,), reads, writes, why)


def both_kinds(attends: Reader) -> Layout:
    """A hybrid: llama.cpp stops where no layer attends, or none recurs."""

    def reads(config: Config, layers: int) -> Values | None:
        found = attends(config, layers)
        return None if found is None else [(True in found, False in found)] * layers

    return needed("layers that attend and layers that recur", reads)


def attends_by_heads(config: Config, layers: int) -> Values | None:
    """A layer with key heads attends; one without recurs, or is an MLP alone: None."""
    keys, hidden = config.get("attention.head_count_kv"), config.get("feed_forward_length")
    if not isinstance(keys, tuple):
        return None
    alone = hidden if isinstance(hidden, tuple) and 0 in hidden else (0,) * layers
    return [True if keys[i] else None if alone[i] else False for i in range(layers)]


def some_unrotated(config: Config, layers: int) -> Values | None:
    """Llama 4: the scale of layers without rotary positions is computed for one at least."""
    return None if config.get(_WINDOW) == 0 else [not all(llama4_rotates(config, layers))] * layers


def some_dense(config: Config, layers: int) -> Values | None:
    """Gemma 4: the rotary factors are loaded by the layers that do not slide."""
    return [not all(slides(config, layers, None) or [False])] * layers


def indexers(full_by_default: Callable[[Config, int], bool]) -> Layout:
    """A layer without an indexer takes the choice of the last one that has one."""

    def reads(config: Config, layers: int) -> Values:
        given = config.get(_INDEXERS)
        types = given if isinstance(given, tuple) else None
        values: Values = []
        last: int | None = None
        for layer in range(layers):
            full = bool(types[layer]) if types else full_by_default(config, layer)
            last = layer if full else last
            if last is None:
                raise ArchitectureError(f"{_INDEXERS}: the first layer must have an indexer")
            values.append(True if full else Reference(last))
        return values

    return Layout((_INDEXERS,), _trunk(reads))


def glm_dsa_full(config: Config, layer: int) -> bool:
    """Where the types are not given: from a context of 2^20 on the pattern of GLM 5.2."""
    long = (number(config, "context_length", 0) or 0) >= 1 << 20
    return not long or layer < 3 or layer % 4 == 2


def _trunk(reads: Reader) -> Reader:
    """The same for the decoder's own layers; nothing for those that predict further tokens."""

    def rule(config: Config, layers: int) -> Values | None:
        extra = number(config, EXTRA_BLOCKS, 0) or 0
        values = reads(config, layers - extra)
        return None if values is None else [*values, *[None] * extra]

    return rule


def step(key: str, reads: Callable[[int, int], bool]) -> Layout:
    """A period of which another one may say the same: `reads` takes (layer, period)."""

    def values(config: Config, layers: int) -> Values:
        period = number(config, key)
        return [None if period is None else reads(layer, period) for layer in range(layers)]

    return Layout((key,), _trunk(values), _other_period(key))


def attention_interval(default: int) -> tuple[Layout, Layout]:
    """Every so-manieth layer attends, the others recur, unless an array says so."""

    def attends(config: Config, layers: int) -> Values:
        recurs = config.get(_RECURRENT)
        if isinstance(recurs, tuple):
            return [not value for value in recurs[:layers]]
        period = number(config, _INTERVAL, default) or 0
        return [period > 0 and (layer + 1) % period == 0 for layer in range(layers)]

    interval = Layout((_INTERVAL,), _trunk(attends), _other_period(_INTERVAL))
    return interval, both_kinds(attends)


def _other_period(key: str) -> Offers:
    """Offers of other periods where the metadata gives one."""

    def offers(config: Config, values: Values) -> Iterator[Config]:
        for period in _periods(values) if key in config else ():
            yield {**config, key: period}

    return offers


def _periods(values: Values) -> tuple[int, ...]:
    """The periods that may put a hit at every true value: from the first one, or between two."""
    hits = [layer for layer, value in enumerate(values) if value]
    return (
        *(hit + 1 for hit in hits[:1]),
        *(b - a for a, b in pairwise(hits[:2])),
        len(values) + 1,
    )


def slopes(config: Config, layers: int) -> Values:
    """MiniMax-01: the decay of a recurrent layer follows from its index and the number."""
    given = config.get(_RECURRENT)
    period = number(config, _INTERVAL, 8) or 1
    recurs = given if isinstance(given, tuple) else [bool((i + 1) % period) for i in range(layers)]
    return [(layer, layers) if recurs[layer] else None for layer in range(layers)]


def deepstack_map(config: Config, layers: int) -> Values | None:
    """Granite: each picture stream enters before one layer, all of them must have one."""
    mapping = config.get("deepstack_mapping")
    if not isinstance(mapping, tuple) or not any(_natural(value) for value in mapping):
        return None
    streams = tuple(value for value in mapping if _natural(value))
    return [(layer if _natural(mapping[layer]) else None, streams) for layer in range(layers)]


def _natural(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def deepstack_first(config: Config, layers: int) -> Values | None:
    """Qwen3-VL: the picture streams enter behind the first layers."""
    count = number(config, "n_deepstack_layers", 0) or 0
    return [layer if layer < count else None for layer in range(layers)] if count else None


def first_heads(config: Config, layers: int) -> Values | None:
    """Sizes that follow from the first layer's number of heads, where no key gives them."""
    heads = config.get("attention.head_count")
    if not isinstance(heads, tuple) or not heads:
        return None
    given = "attention.key_length" in config and "attention.value_length" in config
    return [bool(heads[0]) if given else heads[0]] * layers


def residual_blocks(config: Config, layers: int) -> Values | None:
    """Kimi K3: at every n-th layer the stream so far is set aside for all later ones."""
    return list(range(layers)) if config.get("attn_res.block_size") else None


def rescaled(config: Config, layers: int) -> Values | None:
    """RWKV-6: the weights of a layer are stored halved once for every so many layers before."""
    every = number(config, "rescale_every_n_layers", 0)
    return [layer // every for layer in range(layers)] if every else None
