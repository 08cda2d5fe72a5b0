"""What a GGUF file's metadata says of layers, and what llama.cpp knows of them without it.

An architecture's loader in llama.cpp may know a pattern that no metadata tells: which layers
slide, which rotate, how a scale follows from the number of layers. `GGUF_FIELDS` lists these
facts, read off its sources of late 2026, so that a cut that would change one is refused.

Here a config maps keys without the architecture's prefix (`attention.head_count_kv`) to values.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from depthcut.checkpoint.fields import (
    Cut,
    Field,
    Layout,
    LeadingCount,
    Reference,
    Values,
    cut_field,
)
from depthcut.checkpoint.values import Config, short
from depthcut.errors import ArchitectureError, nearest

BLOCK_COUNT = "block_count"
EXTRA_BLOCKS = "nextn_predict_layers"
_PATTERN = "attention.sliding_window_pattern"
_WINDOW = "attention.sliding_window"
_INDEXERS = "attention.indexer.types"
_RECURRENT = "attention.recurrent_layers"
_INTERVAL = "full_attention_interval"

_INSTEAD = "cut the checkpoint that it was converted from, and convert again"


def layer_counts(config: Config, name: str) -> tuple[int, int]:
    """How many layers the decoder has, and how many stand behind them to predict further tokens.

    Raises:
        ArchitectureError: `name`, the architecture, is unknown or has no layers to cut.
    """
    if name in _REFUSED:
        raise ArchitectureError(f"GGUF files of {name} cannot be cut: {_REFUSED[name]}")
    if name not in GGUF_FIELDS:
        raise ArchitectureError(
            f"the GGUF architecture {name!r} is not known{nearest(name, GGUF_FIELDS)}: llama.cpp "
            f"may know things of its layers that no metadata tells; {_INSTEAD}"
        )
    layers = _number(config, BLOCK_COUNT)
    extra = _number(config, EXTRA_BLOCKS, 0) or 0
    if layers is None or not 0 <= extra < layers:
        raise ArchitectureError(
            f"{name}.{BLOCK_COUNT} must be a positive number above {EXTRA_BLOCKS}, found {layers} "
            f"and {extra}; convert the model again"
        )
    return layers - extra, extra


def cut_metadata(config: Config, name: str, cut: Cut) -> dict[str, object]:
    """The config of the model that is left with the layers of `cut`, all of them the decoder's.

    Raises:
        ArchitectureError: The architecture is unknown, or its metadata cannot say this cut.
    """
    layers, extra = layer_counts(config, name)
    every = Cut(layers + extra, (*cut.kept, *range(layers, layers + extra)))
    fields = (*_EVERYWHERE, *GGUF_FIELDS[name])
    _refuse_unknown(config, name, fields)
    result = config
    for field in fields:
        result = cut_field(field, config, result, every)
    return {**result, BLOCK_COUNT: len(every.kept)}


def _number(config: Config, key: str, default: int | None = None) -> int | None:
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

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def read(self, config: Config, layers: int) -> Values | None:
        entries = config.get(self.key)
        if not isinstance(entries, tuple):
            return None
        extra = _number(config, EXTRA_BLOCKS, 0) or 0
        if len(entries) not in (layers, layers - extra):
            raise ArchitectureError(
                f"{self.key} must have {layers} entries, one for each layer, found "
                f"{len(entries)}; convert the model again"
            )
        return [*entries, *[None] * (layers - len(entries))]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield {**config, self.key: tuple(value for value in values if value is not None)}


@dataclass(frozen=True, slots=True)
class Fixed:
    """What llama.cpp makes of a layer's index or of the number of layers, and no metadata says."""

    what: str
    reads: Callable[[Config, int], Values | None]
    """(config, number of layers) -> what each layer does; None: the model does not use it."""
    keys: tuple[str, ...] = ()
    """What `reads` depends on and that cannot be written anew."""

    def read(self, config: Config, layers: int) -> Values | None:
        extra = _number(config, EXTRA_BLOCKS, 0) or 0
        values = self.reads(config, layers - extra)
        return None if values is None else [*values, *[None] * extra]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        raise ArchitectureError(f"llama.cpp fixes {self.what}, and this cut does not fit that")


@dataclass(frozen=True, slots=True)
class Sliding:
    """Which layers slide: an array, a period, or the period that llama.cpp knows.

    A period is cut where another one says the same. At least one layer must slide, or llama.cpp
    stops.
    """

    period: int | None
    """None: an array is required."""
    dense_first: bool = False
    """Whether the first layer of a period is the one that does not slide, not the last."""
    always: bool = False
    """Whether layers slide even where no window is given."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (_PATTERN,)

    def read(self, config: Config, layers: int) -> Values | None:
        extra = _number(config, EXTRA_BLOCKS, 0) or 0
        slides = _slides(config, layers - extra, self.period, self.dense_first)
        if slides is None or not (self.always or config.get(_WINDOW)):
            return None
        if not any(slides):
            raise ArchitectureError(f"{_PATTERN} has no layer that slides, {_WINDOW} a width")
        return [*slides, *[None] * extra]

    def write(self, config: Config, values: Values) -> Iterator[Config]:
        yield config
        if type(config.get(_PATTERN)) is int:
            for period in range(len(values) + 2):
                yield {**config, _PATTERN: period}
        if not any(values):
            raise ArchitectureError(f"at least one layer must slide ({_PATTERN}): llama.cpp stops")
        rule = "" if _PATTERN in config else f"at every {self.period}th layer, "
        raise ArchitectureError(
            f"which layers do not slide is fixed ({rule}{_PATTERN}), and this cut does not fit that"
        )


def _slides(
    config: Config, layers: int, period: int | None, dense_first: bool = False
) -> list[object] | None:
    given = config.get(_PATTERN)
    if isinstance(given, tuple):
        return [bool(value) for value in given[:layers]]
    period = _number(config, _PATTERN, period)
    if period is None:
        return None
    dense = 0 if dense_first else period - 1
    return [period < 1 or layer % period != dense for layer in range(layers)]


def _rotates(step: int) -> Field:
    """Every so-manieth layer has no rotary positions."""
    return Fixed(
        f"which layers have no rotary positions (every {step}th)",
        lambda _, layers: [bool((layer + 1) % step) for layer in range(layers)],
    )


def _llama4_rotates(config: Config, layers: int) -> Values:
    step = layers if config.get(_WINDOW) == 0 else 4
    return [bool((layer + 1) % step) for layer in range(layers)]


def _llama4_slides(config: Config, layers: int) -> Values | None:
    return None if config.get(_WINDOW) == 0 else _slides(config, layers, 4)


def _smallthinker_rotates(config: Config, layers: int) -> Values:
    step = 4 if config.get(_WINDOW) else layers
    return [step == layers or bool(layer % step) for layer in range(layers)]


def _exaone4_slides(config: Config, layers: int) -> Values:
    slides = _slides(config, layers, 4) if layers == 64 else None
    return slides or [None] * layers


def _by_count(what: str, value: Callable[[Config, int], object]) -> Field:
    """Something that follows from the number of layers, the same for all of them."""
    return Fixed(what, lambda config, layers: [value(config, layers)] * layers)


def _deepseek2_kind(config: Config, layers: int) -> tuple[bool, bool]:
    lite = layers in (26, 27) or layers == 48
    return lite, layers in (47, 48) and not config.get("expert_gating_func")


def _shared_cache(config: Config, layers: int) -> Values:
    """The last layers use the keys and values of the last two that have their own."""
    own = layers - (_number(config, "attention.shared_kv_layers", 0) or 0)
    if own < 2:
        raise ArchitectureError("attention.shared_kv_layers: two layers must have their own cache")
    slides = _slides(config, layers, None) or [False] * layers
    return [
        False if layer < own else Reference(own - (2 if slides[layer] else 1))
        for layer in range(layers)
    ]


def _write_shared_cache(config: Config, values: Values) -> Iterator[Config]:
    yield {**config, "attention.shared_kv_layers": sum(map(bool, values))}


def _indexers(full_by_default: Callable[[Config, int], bool]) -> Field:
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


def _glm_dsa_full(config: Config, layer: int) -> bool:
    long = (_number(config, "context_length", 0) or 0) >= 1 << 20
    return not long or layer < 3 or layer % 4 == 2


def _trunk(reads: Callable[[Config, int], Values]) -> Callable[[Config, int], Values]:
    """The same for the decoder's own layers; nothing for those that predict further tokens."""

    def rule(config: Config, layers: int) -> Values:
        extra = _number(config, EXTRA_BLOCKS, 0) or 0
        return [*reads(config, layers - extra), *[None] * extra]

    return rule


def _step(key: str, reads: Callable[[int, int], bool], default: int | None) -> Field:
    """A period of which another one may say the same: `reads` takes (layer, period)."""

    def values(config: Config, layers: int) -> Values:
        period = _number(config, key, default)
        return [None if period is None else reads(layer, period) for layer in range(layers)]

    def writes(config: Config, values: Values) -> Iterator[Config]:
        if key in config:
            for period in range(1, len(values) + 2):
                yield {**config, key: period}

    return Layout((key,), _trunk(values), writes)


def _attention_interval(default: int) -> Field:
    """Every so-manieth layer attends, the others recur, unless an array says so."""

    def values(config: Config, layers: int) -> Values:
        if isinstance(config.get(_RECURRENT), tuple):
            return [None] * layers
        period = _number(config, _INTERVAL, default) or 0
        return [period > 0 and (layer + 1) % period == 0 for layer in range(layers)]

    def writes(config: Config, values: Values) -> Iterator[Config]:
        if _INTERVAL in config:
            for period in range(1, len(values) + 2):
                yield {**config, _INTERVAL: period}

    return Layout((_INTERVAL,), _trunk(values), writes)


def _slopes(config: Config, layers: int) -> Values:
    """MiniMax-01: the decay of a recurrent layer follows from its index and the number."""
    given = config.get(_RECURRENT)
    period = _number(config, _INTERVAL, 8) or 1
    recurs = given if isinstance(given, tuple) else [bool((i + 1) % period) for i in range(layers)]
    return [(layer, layers) if recurs[layer] else None for layer in range(layers)]


def _deepstack_map(config: Config, layers: int) -> Values | None:
    """Granite: each picture stream enters before one layer, all of them must have one."""
    mapping = config.get("deepstack_mapping")
    if not isinstance(mapping, tuple) or not any(_natural(value) for value in mapping):
        return None
    streams = tuple(value for value in mapping if _natural(value))
    return [(layer if _natural(mapping[layer]) else None, streams) for layer in range(layers)]


def _natural(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _deepstack_first(config: Config, layers: int) -> Values | None:
    """Qwen3-VL: the picture streams enter behind the first layers."""
    count = _number(config, "n_deepstack_layers", 0) or 0
    return [layer if layer < count else None for layer in range(layers)] if count else None


def _residual_blocks(config: Config, layers: int) -> Values | None:
    return list(range(layers)) if config.get("attn_res.block_size") else None


def _rescaled(config: Config, layers: int) -> Values | None:
    """RWKV-6: the weights of a layer are stored halved once for every so many layers before."""
    every = _number(config, "rescale_every_n_layers", 0)
    return [layer // every for layer in range(layers)] if every else None


_FIRST = Fixed(
    "that the first layer gives the values which the others mix in",
    lambda _, layers: [layer == 0 for layer in range(layers)],
)
_PICTURES = Fixed("where pictures enter (deepstack_mapping)", _deepstack_map)
_MOE_STEP = _step("interleave_moe_layer_step", lambda i, n: n > 0 and (i + 1) % n == 0, None)

_EVERYWHERE: tuple[Field, ...] = (
    *map(
        PerLayer,
        (
            "activation_sparsity_scale",
            "attention.compress_ratios",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.indexer.types",
            "attention.recurrent_layers",
            "attention.rope_pattern",
            "attention.sliding_window_pattern",
            "deepstack_mapping",
            "expert_feed_forward_length",
            "expert_used_count",
            "feed_forward_length",
            "swiglu_clamp_exp",
            "swiglu_clamp_shexp",
            "xielu.alpha_n",
            "xielu.alpha_p",
            "xielu.beta",
            "xielu.eps",
        ),
    ),
    LeadingCount("leading_dense_block_count"),
)
"""What means the same for every architecture that has it."""

_PLAIN = """
apertus arcee arctic bailingmoe bailingmoe2 bailingmoe3 bitnet bloom chameleon chatglm codeshell
cogvlm dbrx deci deepseek deepseek2-ocr deepseek32 dots1 dream ernie4_5 exaone falcon falcon-h1
gemma glm4 glm4moe gpt2 gptj gptneox granitehybrid graniteswitch grok grovemoe hunyuan-dense
hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 jamba kimi-linear lfm2 lfm2moe llada llada-moe
llama llama-embed maincoder mamba mamba2 minimax-m2 minimax-m3 mistral3 mpt nanbeige nemotron
nemotron_h nemotron_h_moe olmo olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe
plamo plamo2 plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe refact rnd1 seed_oss stablelm
starcoder starcoder2 talkie xverse
"""
"""All that they know of a layer lies in its tensors and in `_EVERYWHERE`."""

GGUF_FIELDS: Mapping[str, tuple[Field, ...]] = {
    **dict.fromkeys(_PLAIN.split(), ()),
    **dict.fromkeys(("rwkv7", "arwkv7"), (_FIRST,)),
    **dict.fromkeys(
        ("deepseek2", "mistral4"),
        (_by_count("the kind of model by its number of layers", _deepseek2_kind),),
    ),
    **dict.fromkeys(("granite", "granitemoe"), (_PICTURES,)),
    **dict.fromkeys(("maple", "mimo2", "spark2_5", "step35", "dots3note"), (Sliding(None),)),
    **dict.fromkeys(
        ("qwen3vl", "qwen3vlmoe", "qwen3tts"),
        (
            Fixed(
                "that pictures enter behind the first layers (n_deepstack_layers)",
                _deepstack_first,
                ("n_deepstack_layers",),
            ),
        ),
    ),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), (_attention_interval(4),)),
    **dict.fromkeys(
        ("rwkv6", "rwkv6qwen2"),
        (
            Fixed(
                "how often weights are halved (rescale_every_n_layers)",
                _rescaled,
                ("rescale_every_n_layers",),
            ),
        ),
    ),
    "afmoe": (Sliding(4), _rotates(4)),
    "baichuan": (
        _by_count(
            "rotary positions to 32 layers and a distance bias to 40",
            lambda _, layers: {32: "rotary", 40: "bias"}.get(layers, "neither"),
        ),
    ),
    "cohere2": (Sliding(4, always=True),),
    "cohere2moe": (Sliding(4, dense_first=True, always=True),),
    "command-r": (
        _by_count("norms of queries and keys to 64 layers and more", lambda _, n: n >= 64),
    ),
    "deepseek4": (LeadingCount("hash_layer_count"),),
    "ernie4_5-moe": (_MOE_STEP,),
    "exaone-moe": (Sliding(4, always=True),),
    "exaone4": (Fixed("that layers slide in models of 64 layers only", _exaone4_slides),),
    "gemma2": (
        Sliding(2, always=True),
        _by_count("another attention scale to 46 layers", lambda _, layers: layers == 46),
    ),
    "gemma3": (
        Sliding(6),
        _by_count("another attention scale to 62 layers", lambda _, layers: layers == 62),
    ),
    "gemma4": (
        Layout(("attention.shared_kv_layers",), _shared_cache, _write_shared_cache),
        Sliding(None, always=True),
    ),
    "glm-dsa": (_indexers(_glm_dsa_full),),
    "glm5-next": (_indexers(lambda *_: True),),
    "gpt-oss": (Sliding(2, always=True),),
    "granite_swa": (Sliding(None), _PICTURES),
    "hy_v4": (_indexers(lambda *_: True),),
    "kimi-k3": (
        Fixed(
            "which layers mix earlier ones in (attn_res.block_size)",
            _residual_blocks,
            ("attn_res.block_size",),
        ),
    ),
    "laguna": (Sliding(4, dense_first=True),),
    "llama4": (
        Fixed("which layers attend within chunks (all but every 4th)", _llama4_slides),
        Fixed("which layers have no rotary positions", _llama4_rotates),
        _MOE_STEP,
    ),
    "mellum": (Sliding(4),),
    "minicpm": (
        _by_count(
            "a residual scale by the number of layers (residual_scale is not given)",
            lambda config, layers: None if "residual_scale" in config else layers,
        ),
    ),
    "minicpm3": (_by_count("a residual scale by the number of layers", lambda _, n: n),),
    "minimax-01": (
        _attention_interval(8),
        Fixed("the decay of recurrent layers by their index and number", _slopes),
    ),
    "muse-glimmer": (Sliding(4, always=True),),
    "olmo2": (Sliding(4),),
    "plamo3": (Sliding(8),),
    "smallthinker": (
        Sliding(4, dense_first=True),
        Fixed("which layers have no rotary positions (every 4th)", _smallthinker_rotates),
    ),
    "smollm3": (_rotates(4),),
}
"""By general.architecture."""

_NO_DECODERS = """
bert modern-bert nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert
gemma-embedding t5 t5encoder clip wavtokenizer-dec pockettts
"""

_REFUSED: Mapping[str, str] = {
    **dict.fromkeys(_NO_DECODERS.split(), "it is no text decoder"),
    **dict.fromkeys(
        ("eagle3", "dflash", "gemma4-assistant"),
        "it drafts for another model, whose layers it reads",
    ),
    "gemma3n": "llama.cpp fixes which layers share keys and values (those from 20 on)",
    "hrm_text": "its layers run in cycles that the number of blocks must match",
    "qwen4exp": "its n-gram embeddings belong to single layers",
}

_NOT_OF_LAYERS = frozenset(
    {
        "adapters.token_ids_activate",
        "adapters.token_ids_substitute",
        "attention.indexer.block_size",
        "attention.indexer.local_blocks",
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "block_size",
        "classifier.output_labels",
        "embedding_length_per_layer_input",
        "num_loops",
        "rope.dimension_sections",
        "skip_loop_final_norm",
        "ssm.time_step_rank",
        BLOCK_COUNT,
        EXTRA_BLOCKS,
    }
)
"""Arrays of other things, names that only sound like it, and what is cut here itself."""

_SOUNDS_OF_LAYERS = (
    "layer",
    "block",
    "depth",
    "interval",
    "pattern",
    "period",
    "step",
    "every",
    "stack",
    "loop",
    "cycle",
    "nextn",
    "_types",
)


def _refuse_unknown(config: Config, name: str, fields: tuple[Field, ...]) -> None:
    if config.get("embedding_length_per_layer_input"):
        raise ArchitectureError(
            f"{name}.embedding_length_per_layer_input: the embeddings of all layers lie in one "
            f"tensor, which is not cut in GGUF files; {_INSTEAD}"
        )
    known = _NOT_OF_LAYERS.union(*(field.keys for field in fields))
    for key, value in config.items():
        is_array = isinstance(value, tuple)
        if key not in known and (is_array or any(word in key for word in _SOUNDS_OF_LAYERS)):
            raise ArchitectureError(
                f"the metadata has {key} ({'an array' if is_array else repr(value)}), and depthcut "
                f"does not know what it says of the layers of {name}; {_INSTEAD}"
            )
