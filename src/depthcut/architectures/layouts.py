"""What several keys say together, what layers take from each other, and what no code can run.

By idea, not by model type.
"""

from collections.abc import Iterator
from itertools import pairwise

from depthcut.architectures.fields import Layout, Reference, Requirement, Rule, Values
from depthcut.architectures.rules import FULL, LINEAR, index_sharing, rotary
from depthcut.architectures.values import (
    AROUND,
    Config,
    layer_indices,
    positive,
    value_at,
    whole_number,
)
from depthcut.errors import ArchitectureError


def _sparse_step(*, default_dense: tuple[int, ...] = ()) -> Layout:
    def dense_layers(config: Config, layers: int) -> set[int]:
        named = layer_indices(config, "mlp_only_layers", layers)
        return set(default_dense) if named is None else named

    def reads(config: Config, layers: int) -> Values:
        period = positive(config, "decoder_sparse_step", 1)
        dense = dense_layers(config, layers)
        return [(layer + 1) % period == 0 and layer not in dense for layer in range(layers)]

    def writes(config: Config, values: Values) -> Iterator[Config]:
        for period in (positive(config, "decoder_sparse_step", 1), 1):
            dense = [
                layer
                for layer, sparse in enumerate(values)
                if (layer + 1) % period == 0 and not sparse
            ]
            offer = {**config, "mlp_only_layers": dense}
            yield offer if period != 1 else {**offer, "decoder_sparse_step": 1}

    return Layout(("decoder_sparse_step", "mlp_only_layers"), reads, writes)


SPARSE_STEP = _sparse_step()
"""Every n-th layer has experts, except those listed (Qwen). Any cut can be said: where the
period no longer holds it becomes 1, and the list takes the rest."""
SPARSE_STEP_OR_TWO = _sparse_step(default_dense=(0, 1))
"""The same; without a list the first two layers are dense (Flint)."""


def _ernie(config: Config, layers: int) -> Values:
    start = whole_number(config, "moe_layer_start_index", 1) or 0
    end = whole_number(config, "moe_layer_end_index", -1)
    end = layers - 1 if end is None or end == -1 else end
    every = positive(config, "moe_layer_interval", 1)
    return [(layer + 1) % every == 0 and start <= layer <= end for layer in range(layers)]


def _as_ernie(config: Config, values: Values) -> Iterator[Config]:
    sparse = [layer for layer, value in enumerate(values) if value]
    first, last = (sparse[0], sparse[-1]) if sparse else (len(values), len(values))
    given = positive(config, "moe_layer_interval", 1)
    steps = [second - one for one, second in pairwise(sparse)]
    for every in dict.fromkeys([given, *steps[:1], first + 1, 1]):
        yield {
            **config,
            "moe_layer_start_index": first,
            "moe_layer_end_index": last,
            "moe_layer_interval": every,
        }


def _listed_sparse(config: Config, layers: int) -> Values | None:
    given = config.get("moe_layers_enum")
    if given is None:
        return [layer >= 3 for layer in range(layers)]
    names = given.split(",") if isinstance(given, str) else given
    try:
        named = {int(name) for name in names} if isinstance(names, list) else set()
    except (TypeError, ValueError) as error:
        raise ArchitectureError(
            "config.json: moe_layers_enum must list layers, as 3,4,5; correct it"
        ) from error
    return [layer in named for layer in range(layers)]


SPARSE_LIST = Layout(
    ("moe_layers_enum",),
    _listed_sparse,
    lambda config, values: iter(
        [
            {
                **config,
                "moe_layers_enum": ",".join(
                    str(layer) for layer, sparse in enumerate(values) if sparse
                ),
            }
        ]
    ),
)
"""The layers with experts, with commas between them (Step)."""

EXPERTS_BETWEEN = Layout(
    ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval"), _ernie, _as_ernie
)
"""Every n-th layer between two has experts (Ernie 4.5)."""


def _cycle(config: Config, layers: int) -> Values:
    pattern = config.get("block_types", ["recurrent", "recurrent", "attention"])
    if not isinstance(pattern, list) or not pattern:
        raise ArchitectureError("config.json: block_types must be a list of kinds; correct it")
    return [pattern[layer % len(pattern)] for layer in range(layers)]


CYCLE = Layout(
    ("block_types",), _cycle, lambda config, values: iter([{**config, "block_types": values}])
)
"""A pattern that the layers repeat (RecurrentGemma)."""


def _runs(config: Config, layers: int) -> Values | None:
    runs = config.get("attention_types")
    if runs is None:
        return None
    try:
        kinds = [
            kind
            for pattern, times in runs  # type: ignore[attr-defined]
            for _ in range(min(times, layers + 1))
            for kind in pattern
        ]
    except (TypeError, ValueError):
        kinds = []
    if len(kinds) != layers:
        raise ArchitectureError(
            f"config.json: attention_types must expand to {layers} entries, found {len(kinds)}"
        )
    return kinds


ATTENTION_RUNS = Layout(
    ("attention_types",),
    _runs,
    lambda config, values: iter([{**config, "attention_types": [[values, 1]]}]),
)
"""Kinds and how often they repeat (GPT-Neo)."""


def multiple(key: str, factor: int) -> Layout:
    """A second count that must be so many times the number of layers where it is given."""
    return Layout(
        (key,),
        lambda config, layers: [config.get(key, factor * layers) == factor * layers] * layers,
        lambda config, values: iter([{**config, key: factor * len(values)}]),
    )


def _halvings(config: Config, layers: int) -> Values | None:
    every = whole_number(config, "rescale_every", 6) or 0
    return [(layer // every, layers // every) for layer in range(layers)] if every > 0 else None


HALVINGS = Layout(
    ("rescale_every",),
    _halvings,
    why="the model halves its states every rescale_every layers, which changes the last bits of "
    "what later layers compute; only float16 needs it: set it to 0 in config.json to remove any "
    "layers",
)
"""RWKV keeps its states small where it does not train."""


# --- what layers take from each other ----------------------------------------------------------


def shared_keys_and_values(default: Rule, *, missing: int = 0) -> Layout:
    """The last num_kv_shared_layers take keys and values of the last layer of their type before
    them (Gemma 3n, Gemma 4). With as many as there are layers all come from outside.

    Args:
        default: What fills missing layer_types.
        missing: What a missing num_kv_shared_layers means.
    """

    def reads(config: Config, layers: int) -> Values:
        types = config.get("layer_types")
        types = types if isinstance(types, list) else default(config, layers)
        shared = whole_number(config, "num_kv_shared_layers", missing) or 0
        first = layers - shared
        if first <= 0 < shared:
            return ["outside"] * layers
        donors = {types[layer]: layer for layer in range(min(first, len(types)))}
        return [
            None if layer < first else Reference(donors.get(types[layer], -1))
            for layer in range(layers)
        ]

    def writes(config: Config, values: Values) -> Iterator[Config]:
        yield {**config, "num_kv_shared_layers": sum(value is not None for value in values)}

    return Layout(("num_kv_shared_layers",), reads, writes)


def shared_indexers(default: Rule) -> Layout:
    """A layer without an indexer takes the choice of the nearest one before it that has one.

    Args:
        default: What fills missing indexer_types.
    """

    def reads(config: Config, layers: int) -> Values:
        kinds = config.get("indexer_types")
        kinds = kinds if isinstance(kinds, list) else default(config, layers)
        values: Values = []
        nearest = -1
        for layer, kind in enumerate(kinds):
            nearest = nearest if kind == "shared" else layer
            values.append(Reference(nearest) if kind == "shared" else None)
        return values

    return Layout(
        (), reads, why="a layer that shares the indexer of another would take it from a third one"
    )


def _neighbours_indexers(config: Config, layers: int) -> Values:
    kinds = config.get("indexer_types")
    kinds = kinds if isinstance(kinds, list) else index_sharing(config, layers)
    attention = config.get("layer_types")
    attention = attention if isinstance(attention, list) else [None] * layers
    return [
        Reference(layer - 1) if kind == "shared" and attention[layer] != LINEAR else None
        for layer, kind in enumerate(kinds[:layers])
    ]


NEIGHBOURS_INDEXERS = Layout(
    (),
    _neighbours_indexers,
    why="a layer that shares the indexer of the layer right before it would stand behind another",
)


def _sources(config: Config, layers: int) -> Values | None:
    given = config.get("kv_source_layers")
    if not isinstance(given, list) or len(given) != layers:
        return None
    return [
        Reference(source) if source != layer and type(source) is int else None
        for layer, source in enumerate(given)
    ]


SHARED_SOURCES = Layout(
    ("kv_source_layers",),
    _sources,
    lambda config, values: iter(
        [
            {
                **config,
                "kv_source_layers": [
                    value.layer if isinstance(value, Reference) else layer
                    for layer, value in enumerate(values)
                ],
            }
        ]
    ),
)
"""Each layer names the one whose keys and values it takes; itself where it has its own."""


def _latents(config: Config, layers: int) -> Values | None:
    sources = _sources(config, layers)
    if sources is None:
        return None
    ropes = rotary(config, layers)
    stores = {source.layer for source in sources if isinstance(source, Reference)}
    values: Values = []
    latest: dict[object, int] = {}
    for layer, source in enumerate(sources):
        rope = bool(ropes[layer]) if layer < len(ropes) else True
        values.append(None if source is None else Reference(latest.get(rope, -1)))
        if layer in stores:
            latest[rope] = layer
    return values


SHARED_LATENTS = Layout(
    (),
    _latents,
    why="a layer that takes another one's keys and values takes those of the nearest such layer, "
    "which would be another one",
)


def ordinal_among(
    kinds: Rule, why: str, *, most: int | None = None, all_stay: bool = False
) -> Layout:
    """Layers of a kind compute with, or are stored by, their ordinal among each other.

    Args:
        kinds: Whether each layer is of that kind.
        why: What such a layer does with its ordinal, in a sentence.
        most: Ordinals from this one on count as the same; None: all differ.
        all_stay: Whether not even the last of them can go.
    """

    def reads(config: Config, layers: int) -> Values:
        values: Values = []
        count = 0
        for is_one in kinds(config, layers):
            values.append((count if most is None else min(count, most)) if is_one else None)
            count += bool(is_one)
        return [(value, count) for value in values] if all_stay else values

    return Layout((), reads, why=why)


# --- where pictures come in ---------------------------------------------------------------------


def _behind_first(config: Config, layers: int) -> Values | None:
    given = value_at(config, f"{AROUND}.vision_config.deepstack_visual_indexes")
    count = len(given) if isinstance(given, list) else 3
    return [layer if layer < count else None for layer in range(layers)]


FEATURES_BEHIND_FIRST_LAYERS = Layout(
    (),
    _behind_first,
    why="features of pictures are added behind the first layers, as many as vision_config has "
    "deepstack_visual_indexes: these must stay where they are",
)


def _injections(config: Config, layers: int) -> Values:
    pairs = value_at(config, f"{AROUND}.deepstack_layer_map") or []
    places = value_at(config, f"{AROUND}.spatial_target_layers")
    places = [12, 15, 18, 21] if places is None else places
    found: list[list[str]] = [[] for _ in range(layers)]
    count = 0
    for label, layer in _labelled(pairs, places):
        count += 1
        if 0 <= layer < layers:
            found[layer].append(label)
    return [(tuple(labels), count) for labels in found]


def _labelled(pairs: object, places: object) -> Iterator[tuple[str, int]]:
    named: list[tuple[str, object]] = []
    if isinstance(pairs, list) and isinstance(places, list):
        named += [
            (f"map {number}", pair[1] if isinstance(pair, list) and len(pair) == 2 else None)
            for number, pair in enumerate(pairs)
        ]
        named += [(f"place {number}", layer) for number, layer in enumerate(places)]
    for label, layer in named or [("", None)]:
        if type(layer) is not int:
            raise ArchitectureError(
                "config.json: deepstack_layer_map must be a list of pairs and "
                "spatial_target_layers one of layers; correct them"
            )
        yield label, layer


def _as_injections(config: Config, values: Values) -> Iterator[Config]:
    at = {
        label: layer
        for layer, value in enumerate(values)
        if isinstance(value, tuple)
        for label in value[0]
    }
    around = config.get(AROUND)
    assert isinstance(around, dict)
    pairs = around.get("deepstack_layer_map") or []
    places = around.get("spatial_target_layers")
    count = len(places) if isinstance(places, list) else 4
    yield {
        **config,
        AROUND: {
            **around,
            "deepstack_layer_map": [
                [pair[0], at.get(f"map {number}", -1)] for number, pair in enumerate(pairs)
            ],
            "spatial_target_layers": [at.get(f"place {number}", -1) for number in range(count)],
        },
    }


INJECTED_FEATURES = Layout(
    (),
    _injections,
    _as_injections,
    why="features of pictures are added before the layers that deepstack_layer_map and "
    "spatial_target_layers name: these must stay",
)
"""Granite's vision names the layers outside the decoder's part of the config."""

# --- what the model's code cannot run ----------------------------------------------------------

_WITHOUT_KEYS = frozenset({LINEAR, "conv", "mamba", "recurrent", "moe", "mlp", "dense"})


def _has_attention(config: Config, layers: int) -> bool:
    for key in ("layers_block_type", "layer_types"):
        kinds = config.get(key)
        if isinstance(kinds, list) and kinds:
            return not {kind for kind in kinds if isinstance(kind, str)} <= _WITHOUT_KEYS
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return "*" in pattern
    return True


NO_ATTENTION = (
    "none of the layers that stay has attention, and transformers cannot generate with a cache of "
    "recurrent layers alone"
)
HAS_ATTENTION = Requirement(NO_ATTENTION, _has_attention)


def needs_layer(reads: Rule, why: str) -> Requirement:
    """At least one layer for which a rule is true must stay."""
    return Requirement(why, lambda config, layers: any(reads(config, layers)))


def needs_type(key: str, kind: str, why: str, *, at: int | None = None) -> Requirement:
    """A kind must be among a list's entries, or stand at one place of it."""

    def holds(config: Config, layers: int) -> bool:
        kinds = config.get(key)
        if not isinstance(kinds, list) or not kinds:
            return True
        return kind in kinds if at is None else kinds[at] == kind

    return Requirement(why, holds)


def hybrids(default: Rule) -> Rule:
    """Which layers of Zamba share a block of attention.

    Args:
        default: What fills a missing layers_block_type.
    """

    def rule(config: Config, layers: int) -> Values:
        kinds = config.get("layers_block_type")
        kinds = (
            kinds if isinstance(kinds, list) and len(kinds) == layers else default(config, layers)
        )
        return [kind == "hybrid" for kind in kinds]

    return rule


def linear_before_full(config: Config, _: int) -> bool:
    """Whether the first layer has linear attention, and another one full."""
    kinds = config.get("layer_types")
    return isinstance(kinds, list) and kinds[:1] == [LINEAR] and FULL in kinds


def cross_attention_first(config: Config, _: int) -> bool:
    """Whether the first layer looks at pictures only."""
    named = config.get("cross_attention_layers")
    return isinstance(named, list) and 0 in named


def cached_types_come_first(config: Config, layers: int) -> bool:
    """Every type of the layers that share keys and values is among those that compute them."""
    types = config.get("layer_types")
    shared = whole_number(config, "num_kv_shared_layers", 0) or 0
    if not isinstance(types, list) or not 0 < shared < layers:
        return True
    return set(map(str, types[: layers - shared])) == set(map(str, types))


def _not_longer_than_the_encoder(config: Config, layers: int) -> bool:
    """Caches of these classes have a slot for each layer of the encoder."""
    encoder = whole_number(config, "encoder_layers", 12) or 0
    return layers <= encoder


NOT_LONGER_THAN_THE_ENCODER = Requirement(
    "the model would have more decoder layers than encoder_layers, and the cache of its class has "
    "no room for them",
    _not_longer_than_the_encoder,
)
