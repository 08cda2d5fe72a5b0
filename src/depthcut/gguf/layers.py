"""What a GGUF file's metadata says of layers, and what llama.cpp knows of them without it.

An architecture's loader in llama.cpp may know a pattern that no metadata tells: which layers
slide, which rotate, how a scale follows from the number of layers. `GGUF_FIELDS` lists these
facts, read off its sources of late 2026, so that a cut that would change one is refused.

Here a config maps keys without the architecture's prefix (`attention.head_count_kv`) to values.
"""

from collections.abc import Mapping

from depthcut.architectures.fields import (
    Cut,
    Field,
    LeadingCount,
    cut_field,
)
from depthcut.architectures.values import Config
from depthcut.errors import ArchitectureError, nearest
from depthcut.gguf.fields import (
    EXTRA_BLOCKS,
    PerLayer,
    attends_by_heads,
    attention_interval,
    both_kinds,
    by_count,
    deepseek2_kind,
    deepstack_first,
    deepstack_map,
    exaone4_slides,
    first_heads,
    fixed,
    glm_dsa_full,
    indexers,
    llama4_rotates,
    llama4_slides,
    needed,
    number,
    rescaled,
    residual_blocks,
    rotates,
    shared_cache,
    sliding,
    slopes,
    smallthinker_rotates,
    some_dense,
    some_unrotated,
    step,
)

BLOCK_COUNT = "block_count"

_INSTEAD = "cut the checkpoint that it was converted from"


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
    layers = number(config, BLOCK_COUNT)
    extra = number(config, EXTRA_BLOCKS, 0) or 0
    if layers is None or not 0 <= extra < layers:
        raise ArchitectureError(
            f"{name}.{BLOCK_COUNT} must be a positive number above {EXTRA_BLOCKS}, found {layers} "
            f"and {extra}; convert the model again"
        )
    return layers - extra, extra


def gguf_fields_of(name: str) -> tuple[Field, ...]:
    """What the metadata of a known architecture may say of its layers."""
    return (*_EVERYWHERE, *GGUF_FIELDS[name])


def cut_metadata(config: Config, name: str, cut: Cut) -> dict[str, object]:
    """The config of the model that is left with the layers of `cut`, all of them the decoder's.

    Raises:
        ArchitectureError: The architecture is unknown, or its metadata cannot say this cut.
    """
    layers, extra = layer_counts(config, name)
    every = Cut(layers + extra, (*cut.kept, *range(layers, layers + extra)))
    fields = gguf_fields_of(name)
    _refuse_unknown(config, name, fields)
    result = config
    for field in fields:
        result = cut_field(field, config, result, every)
    return {**result, BLOCK_COUNT: len(every.kept)}


_FIRST = fixed(
    "that the first layer gives the values which the others mix in",
    lambda _, layers: [layer == 0 for layer in range(layers)],
)
_BOTH_KINDS = both_kinds(attends_by_heads)
_PICTURES = fixed("where pictures enter (deepstack_mapping)", deepstack_map)
_MOE_STEP = step("interleave_moe_layer_step", lambda i, n: n > 0 and (i + 1) % n == 0)

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
    fixed("sizes by the first layer's number of heads", first_heads),
)
"""What means the same for every architecture that has it."""

_PLAIN = """
apertus arcee arctic bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell cogvlm dbrx
deci deepseek deepseek2-ocr deepseek32 dots1 dream ernie4_5 exaone falcon falcon-h1 gemma glm4
glm4moe gpt2 gptj gptneox graniteswitch grok grovemoe hunyuan-dense hunyuan-moe hunyuan_vl hy_v3
internlm2 jais jais2 llada llada-moe llama llama-embed maincoder mamba mamba2 minimax-m2
minimax-m3 mistral3 mpt nanbeige nemotron olmo olmoe openelm orion paddleocr pangu-embedded phi2
phi3 phimoe plamo plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe refact rnd1 seed_oss stablelm
starcoder starcoder2 talkie xverse
"""
"""All that they know of a layer lies in its tensors and in `_EVERYWHERE`."""

_HYBRIDS = """
bailingmoe3 granitehybrid jamba kimi-linear lfm2 lfm2moe nemotron_h nemotron_h_moe plamo2
"""

GGUF_FIELDS: Mapping[str, tuple[Field, ...]] = {
    **dict.fromkeys(_PLAIN.split(), ()),
    **dict.fromkeys(_HYBRIDS.split(), (_BOTH_KINDS,)),
    **dict.fromkeys(("rwkv7", "arwkv7"), (_FIRST,)),
    **dict.fromkeys(
        ("deepseek2", "mistral4"),
        (by_count("the kind of model by its number of layers", deepseek2_kind),),
    ),
    **dict.fromkeys(("granite", "granitemoe"), (_PICTURES,)),
    **dict.fromkeys(("maple", "mimo2", "spark2_5", "step35", "dots3note"), (sliding(None),)),
    **dict.fromkeys(
        ("qwen3vl", "qwen3vlmoe", "qwen3tts"),
        (
            fixed(
                "that pictures enter behind the first layers (n_deepstack_layers)",
                deepstack_first,
                ("n_deepstack_layers",),
            ),
        ),
    ),
    **dict.fromkeys(("qwen3next", "qwen35", "qwen35moe"), attention_interval(4)),
    **dict.fromkeys(
        ("rwkv6", "rwkv6qwen2"),
        (
            fixed(
                "how often weights are halved (rescale_every_n_layers)",
                rescaled,
                ("rescale_every_n_layers",),
            ),
        ),
    ),
    "afmoe": (sliding(4), rotates(4)),
    "baichuan": (
        by_count(
            "rotary positions to 32 layers and a distance bias to 40",
            lambda _, layers: {32: "rotary", 40: "bias"}.get(layers, "neither"),
        ),
    ),
    "cohere2": (sliding(4, always=True),),
    "cohere2moe": (sliding(4, dense_first=True, always=True),),
    "command-r": (
        by_count("norms of queries and keys to 64 layers and more", lambda _, n: n >= 64),
    ),
    "deepseek4": (LeadingCount("hash_layer_count"),),
    "ernie4_5-moe": (_MOE_STEP,),
    "exaone-moe": (sliding(4, always=True),),
    "exaone4": (fixed("that layers slide in models of 64 layers only", exaone4_slides),),
    "gemma2": (
        sliding(2, always=True),
        by_count("another attention scale to 46 layers", lambda _, layers: layers == 46),
    ),
    "gemma3": (
        sliding(6),
        by_count("another attention scale to 62 layers", lambda _, layers: layers == 62),
    ),
    "gemma4": (
        shared_cache(),
        needed("a layer that does not slide", some_dense),
        sliding(None, always=True),
    ),
    "glm-dsa": (indexers(glm_dsa_full),),
    "glm5-next": (indexers(lambda *_: True), _BOTH_KINDS),
    "gpt-oss": (sliding(2, always=True),),
    "granite_swa": (sliding(None), _PICTURES),
    "hy_v4": (indexers(lambda *_: True),),
    "kimi-k3": (
        _BOTH_KINDS,
        fixed(
            "which layers mix earlier ones in (attn_res.block_size)",
            residual_blocks,
            ("attn_res.block_size",),
        ),
    ),
    "laguna": (sliding(4, dense_first=True),),
    "llama4": (
        fixed("which layers attend within chunks (all but every 4th)", llama4_slides),
        fixed("which layers have no rotary positions", llama4_rotates),
        needed("a layer without rotary positions", some_unrotated),
        _MOE_STEP,
    ),
    "mellum": (sliding(4),),
    "minicpm": (
        by_count(
            "a residual scale by the number of layers (residual_scale is not given)",
            lambda config, layers: None if "residual_scale" in config else layers,
        ),
    ),
    "minicpm3": (by_count("a residual scale by the number of layers", lambda _, n: n),),
    "minimax-01": (
        *attention_interval(8),
        fixed("the decay of recurrent layers by their index and number", slopes),
    ),
    "muse-glimmer": (sliding(4, always=True),),
    "olmo2": (sliding(4),),
    "plamo3": (sliding(8),),
    "smallthinker": (
        sliding(4, dense_first=True),
        fixed("which layers have no rotary positions (every 4th)", smallthinker_rotates),
    ),
    "smollm3": (rotates(4),),
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
