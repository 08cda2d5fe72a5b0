"""Text models: where their layers lie, and what their configs say of them.

Layers count from 0. What a field leaves out here means the same in every type (`entry`).
"""

from dataclasses import replace

from depthcut.architectures.entry import Architecture, SlicedTensor
from depthcut.architectures.fields import (
    DependsOnIndex,
    EndStays,
    IndexList,
    LeadingCount,
    PatternString,
    Period,
    PerLayerList,
    Requirement,
    Rule,
    ScaledByDepth,
)
from depthcut.architectures.layouts import (
    ATTENTION_RUNS,
    CYCLE,
    EXPERTS_BETWEEN,
    HALVINGS,
    NEIGHBOURS_INDEXERS,
    NO_ATTENTION,
    NOT_LONGER_THAN_THE_ENCODER,
    SHARED_LATENTS,
    SHARED_SOURCES,
    SPARSE_LIST,
    SPARSE_STEP,
    SPARSE_STEP_OR_TWO,
    cached_types_come_first,
    hybrids,
    linear_before_full,
    multiple,
    needs_layer,
    needs_type,
    ordinal_among,
    shared_indexers,
    shared_keys_and_values,
)
from depthcut.architectures.rules import (
    FULL,
    INDEXED,
    LINEAR,
    SLIDING,
    by_compression,
    by_rope,
    constant,
    dense_first,
    even_below_window,
    from_kimi_lists,
    index_sharing,
    listed,
    named_by,
    pattern_after_dense,
    periodic,
    repeated,
    rotary,
    sliding_from,
    where,
    zamba2_kinds,
    zamba_kinds,
)
from depthcut.architectures.values import value_at


def _types(default: Rule, *sources: str) -> PerLayerList:
    return PerLayerList("layer_types", default, sources)


def _experts(
    key: str | None = None, default: int = 1, frequency: str | None = None
) -> PerLayerList:
    return PerLayerList(
        "mlp_layer_types",
        dense_first(key, default, frequency),
        tuple(filter(None, (key, frequency))),
        count=key or "",
        counted="dense",
    )


def _sliding_count(default: int | None) -> LeadingCount:
    return LeadingCount("max_window_layers", default, switch="use_sliding_window")


_DECODER = Architecture()
_GPT = Architecture(stacks=("transformer.h",), count=("n_layer", "num_hidden_layers"))
_ENCODER_DECODER = Architecture(
    stacks=("model.decoder.layers",),
    count=("decoder_layers",),
    fields=(NOT_LONGER_THAN_THE_ENCODER,),
)

_SLIDING_FROM = _types(sliding_from("max_window_layers", 28))
_QWEN2 = (_sliding_count(28), _SLIDING_FROM)
_HYBRID_QWEN = _types(
    periodic("full_attention_interval", 4, miss=LINEAR), "full_attention_interval"
)
_SLIDING_PATTERN = _types(periodic("sliding_window_pattern", 4), "sliding_window_pattern")
_LAST_IS_FULL = needs_type(
    "layer_types",
    FULL,
    "the last layer that stays has sliding attention, and the config class makes the last one full",
    at=-1,
)
_LAST_FULL_OF_SIX = where(lambda layer, layers: layer % 6 == 5 or layer == layers - 1)
GEMMA4 = (
    _types(_LAST_FULL_OF_SIX),
    shared_keys_and_values(_LAST_FULL_OF_SIX),
    Requirement(
        "a layer that shares keys and values would have no layer of its type before it",
        cached_types_come_first,
    ),
    _LAST_IS_FULL,
)
_GEMMA3N_TYPES = periodic(None, 5)
_GEMMA3N = (
    _types(_GEMMA3N_TYPES),
    PerLayerList("intermediate_size", or_one=True),
    PerLayerList(
        "activation_sparsity_pattern",
        default=lambda _, layers: [0.95 if layer < 10 < layers else 0.0 for layer in range(layers)],
    ),
    shared_keys_and_values(_GEMMA3N_TYPES, missing=15),
    Requirement(
        "a layer that shares keys and values would have no layer of its type before it",
        cached_types_come_first,
    ),
)
EMBEDDINGS_PER_LAYER = (
    SlicedTensor("embed_tokens_per_layer.weight", -1),
    SlicedTensor("per_layer_model_projection.weight", 0),
)
_INDEXER_TYPES = PerLayerList(
    "indexer_types",
    default=index_sharing,
    sources=("index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"),
)
_FIRST_HAS_INDEXER = needs_type(
    "indexer_types", "full", "the first layer that stays shares an indexer with none", at=0
)
_GLM_SPARSE = (
    _types(constant(INDEXED)),
    _INDEXER_TYPES,
    shared_indexers(index_sharing),
    _FIRST_HAS_INDEXER,
)
_HY_INDEXERS = where(lambda layer, _: layer == 0 or layer % 4 == 1, "full", "shared")
_HY_V4 = (
    _types(constant(INDEXED)),
    PerLayerList("indexer_types", _HY_INDEXERS),
    shared_indexers(_HY_INDEXERS),
    _FIRST_HAS_INDEXER,
    _experts(),
)
_MUSE = (
    _types(where(lambda layer, layers: (layers - 1 - layer) % 4 == 0)),
    PerLayerList(
        "layer_rope_theta",
        default=lambda config, layers: [
            0
            if (layers - 1 - layer) % 4 == 0
            else value_at(config, "rope_parameters.rope_theta") or 10000.0  # only: is it 0?
            for layer in range(layers)
        ],
    ),
)


def _gemma3_types() -> PerLayerList:
    return _types(
        periodic("sliding_window_pattern", 6), "sliding_window_pattern", "_sliding_window_pattern"
    )


_SHARES_BLOCK = (
    "the layers that share a block of attention find it, and their part of it, by their ordinal "
    "among each other: of these only the last can go"
)
_PLE_LAYERS = IndexList("ple_layer_ids", base=1)
_FULL_ATTENTION_INDICES = IndexList("full_attn_idxs")
_LOCAL_LAYERS = IndexList("local_layer_ids")

TEXT_MODELS: dict[str, Architecture] = {
    **dict.fromkeys(
        (
            *("apertus", "apertus1p5_text", "arcee", "aria_text", "bitnet", "cohere", "doge"),
            *("chameleon", "cosmos3_edge_text", "deepseek_ocr2_text", "emu3_text_model"),
            *("glm4v_text", "glm_ocr_text", "granite4_vision_text", "granite_docling_text"),
            *("hunyuan_vl_text", "paddleocr_vl_text", "qwen3_vl_text"),
            *("ernie4_5", "falcon_h1", "flex_olmo", "gemma", "glm", "glm4", "granite"),
            *("granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense", "hyperclovax"),
            *("internlm3", "iquestcoder", "jais2", "jetmoe", "llama", "ministral"),
            *("ministral3", "mistral", "mixtral", "nanochat", "nemotron", "olmo", "olmo2"),
            *("olmoe", "persimmon", "phi", "phi3", "phi4_multimodal", "phimoe", "seed_oss"),
            *("solar_open", "stablelm", "starcoder2", "youtu"),
        ),
        _DECODER,
    ),
    **dict.fromkeys(("bloom", "codegen", "ctrl", "gpt_bigcode", "gptj", "openai-gpt"), _GPT),
    **dict.fromkeys(
        (
            *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart"),
            *("pegasus", "plbart", "whisper"),
        ),
        _ENCODER_DECODER,
    ),
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "megatron-bert"),
        Architecture(stacks=("bert.encoder.layer",)),
    ),
    **dict.fromkeys(
        ("camembert", "roberta", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        Architecture(stacks=("roberta.encoder.layer",)),
    ),
    **{
        model_type: Architecture(stacks=(f"{model_type.replace('-', '_')}.encoder.layer",))
        for model_type in ("electra", "ernie", "git", "rembert", "roc_bert", "roformer")
    },
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2"), Architecture(stacks=("backbone.layers",))),
    "afmoe": Architecture(
        fields=(
            _types(periodic("global_attn_every_n_layers", 4), "global_attn_every_n_layers"),
            LeadingCount("num_dense_layers", default=1),
        )
    ),
    "axk1": Architecture(fields=(_experts("first_k_dense_replace", 1, "moe_layer_freq"),)),
    "axk2": Architecture(
        fields=(
            _types(constant(INDEXED)),
            _experts("first_k_dense_replace", 1, "moe_layer_freq"),
        )
    ),
    "bailing_hybrid": Architecture(
        fields=(
            _types(periodic("layer_group_size", 6, miss=LINEAR), "layer_group_size"),
            _experts("first_k_dense_replace", 2),
        )
    ),
    "bamba": Architecture(
        fields=(
            IndexList("attn_layer_indices"),
            needs_layer(
                lambda config, layers: IndexList("attn_layer_indices").read(config, layers) or [],
                NO_ATTENTION,
            ),
        )
    ),
    "beam": Architecture(
        fields=(
            _types(_LAST_FULL_OF_SIX),
            _experts(None, 3),
            DependsOnIndex("each layer weighs its residual by its index"),
        )
    ),
    "biogpt": Architecture(stacks=("biogpt.layers",)),
    "blt": Architecture(stacks=("model.global_transformer.layers",), decoder="global_config"),
    "cohere2": Architecture(fields=(_SLIDING_PATTERN,)),
    "cohere2_moe": Architecture(
        fields=(
            PerLayerList(
                "layer_types", default=pattern_after_dense, sources=("sliding_window_pattern",)
            ),
            _experts("first_k_dense_replace", 0),
        )
    ),
    "cohere_compass_text": Architecture(fields=(_types(constant(FULL)),)),
    "cpmant": Architecture(stacks=("cpmant.encoder.layers",)),
    "cwm": Architecture(fields=(_types(periodic(None, 4, offset=0)),)),
    "data2vec-text": Architecture(stacks=("data2vec_text.encoder.layer",)),
    "dbrx": Architecture(stacks=("transformer.blocks",), count=("n_layers", "num_hidden_layers")),
    "deepseek_v2": Architecture(fields=(LeadingCount("first_k_dense_replace", default=0),)),
    "deepseek_v3": Architecture(fields=(LeadingCount("first_k_dense_replace", default=3),)),
    "deepseek_v32": Architecture(
        fields=(_types(constant(INDEXED)), _experts("first_k_dense_replace", 3))
    ),
    "deepseek_v4": Architecture(
        fields=(
            _types(by_compression),
            PerLayerList("compress_ratios", longer=True),
            PerLayerList(
                "mlp_layer_types",
                default=lambda config, layers: [
                    "hash_moe" if kind == "dense" else kind
                    for kind in dense_first("num_hash_layers", 3, sparse="moe")(config, layers)
                ],
                sources=("num_hash_layers",),
            ),
        )
    ),
    "diffllama": Architecture(
        fields=(DependsOnIndex("lambda of differential attention follows the layer's index"),)
    ),
    "dory": Architecture(
        refusal="its config counts attention and MLP as layers of their own, and its middle layers "
        "run several times: depthcut cannot say what one layer less means"
    ),
    "dots1": Architecture(
        fields=(
            LeadingCount("max_window_layers", default=62),
            _types(sliding_from("max_window_layers", 62, switch=None)),
            LeadingCount("first_k_dense_replace", default=0),
        )
    ),
    "dots3_note_text": Architecture(
        fields=(
            _types(
                lambda config, layers: [
                    (INDEXED if config.get("use_dsa", True) else FULL)
                    if layer < 2 or layer % 4 == 1 or not config.get("use_sliding_window", True)
                    else SLIDING
                    for layer in range(layers)
                ]
            ),
            _experts("first_k_dense_replace", 1, "moe_layer_freq"),
        )
    ),
    "ernie4_5_moe": Architecture(fields=(EXPERTS_BETWEEN,)),
    "exaone": Architecture(
        stacks=("model.layers", "transformer.h"), count=("num_hidden_layers", "num_layers")
    ),
    "exaone4": Architecture(fields=(_SLIDING_PATTERN,)),
    "exaone_moe": Architecture(
        fields=(
            _SLIDING_PATTERN,
            _experts("first_k_dense_replace", 1),
            PerLayerList("is_moe_layer"),
        )
    ),
    "falcon": Architecture(stacks=("transformer.h",), count=("num_hidden_layers", "n_layer")),
    "flint": Architecture(
        fields=(
            _types(where(lambda layer, layers: layer < 2 or layer % 4 == 1 or layer == layers - 1)),
            SPARSE_STEP_OR_TWO,
        )
    ),
    "gemma2": Architecture(fields=(_types(periodic(None, 2)),)),
    "gemma3_text": Architecture(fields=(_gemma3_types(),)),
    "gemma3n_text": Architecture(fields=_GEMMA3N, sliced=EMBEDDINGS_PER_LAYER),
    "gemma4_text": Architecture(fields=GEMMA4, sliced=EMBEDDINGS_PER_LAYER),
    "gemma4_unified_text": Architecture(fields=GEMMA4),
    "glm4_moe": Architecture(fields=(LeadingCount("first_k_dense_replace", default=1),)),
    "glm4_moe_lite": Architecture(fields=(_experts(), LeadingCount("first_k_dense_replace"))),
    "glm_moe_dsa": Architecture(fields=(*_GLM_SPARSE, _experts("first_k_dense_replace", 3))),
    **dict.fromkeys(
        ("gpt-sw3", "gpt2"),
        Architecture(
            stacks=("transformer.h",),
            count=("n_layer", "num_hidden_layers"),
            fields=(
                DependsOnIndex(
                    "each layer divides its attention by its index",
                    "scale_attn_by_inverse_layer_idx",
                ),
            ),
        ),
    ),
    "gpt_neo": Architecture(
        stacks=("transformer.h",),
        count=("num_layers", "num_hidden_layers"),
        fields=(PerLayerList("attention_layers"), ATTENTION_RUNS),
    ),
    "gpt_neox": Architecture(stacks=("gpt_neox.layers",)),
    "gpt_neox_japanese": Architecture(
        stacks=("gpt_neox_japanese.layers",),
        fields=(EndStays("last", "only its attention has a bias"),),
    ),
    "gpt_oss": Architecture(fields=(_types(periodic(None, 2)),)),
    **dict.fromkeys(
        ("granite_swa", "granitemoe_swa"),
        Architecture(
            fields=(_types(periodic(None, 4, offset=0)), PerLayerList("layer_rope_theta"))
        ),
    ),
    "granitemoehybrid": Architecture(
        fields=(PerLayerList("layers_block_type"), _types(constant(LINEAR)))
    ),
    "hrm_text": Architecture(
        refusal="its two stacks run several times in turns: a layer of one is no layer of the other"
    ),
    "hunyuan_v1_moe": Architecture(
        fields=tuple(
            PerLayerList(key, or_one=True)
            for key in ("moe_topk", "num_experts", "moe_intermediate_size", "num_shared_expert")
        )
    ),
    "hy_v3": Architecture(fields=(_experts(), LeadingCount("first_k_dense_replace"))),
    "hy_v4": Architecture(fields=_HY_V4),
    **dict.fromkeys(
        ("inkling2_text", "inkling2_loop_text"),
        Architecture(
            refusal="every n-th layer by its index starts a block that all later layers "
            "attend to: a layer less would move those starts"
        ),
    ),
    "inkling_text": Architecture(
        fields=(
            _LOCAL_LAYERS,
            _types(
                named_by(
                    _LOCAL_LAYERS,
                    "hybrid_sliding",
                    "hybrid",
                    periodic(None, 6, hit="hybrid", miss="hybrid_sliding"),
                )
            ),
            _experts("dense_mlp_idx", 0),
        )
    ),
    "jamba": Architecture(
        fields=(
            Period("attn_layer_period", 8, offset="attn_layer_offset", offset_default=4),
            Period("expert_layer_period", 2, offset="expert_layer_offset", offset_default=1),
            needs_layer(
                lambda config, layers: (
                    Period(
                        "attn_layer_period", 8, offset="attn_layer_offset", offset_default=4
                    ).read(config, layers)
                    or []
                ),
                NO_ATTENTION,
            ),
        )
    ),
    "kimi_linear": Architecture(
        fields=(
            _types(from_kimi_lists),
            IndexList("linear_attn_config.full_attn_layers", base=1),
            IndexList("linear_attn_config.kda_layers", base=1),
            _experts("first_k_dense_replace", 1),
        )
    ),
    "kolibri1": Architecture(fields=(_types(periodic(None, 5)),)),
    "laguna": Architecture(
        fields=(
            _types(constant(FULL)),
            _experts(),
            PerLayerList("num_attention_heads_per_layer"),
        )
    ),
    "lara_mini": Architecture(fields=(_types(repeated(LINEAR, SLIDING, LINEAR, FULL, SLIDING)),)),
    "lfm2": Architecture(
        fields=(
            _FULL_ATTENTION_INDICES,
            _types(named_by(_FULL_ATTENTION_INDICES, FULL, "conv", constant(FULL))),
        )
    ),
    "lfm2_moe": Architecture(fields=(LeadingCount("num_dense_layers", default=2),)),
    "lfm3": Architecture(
        fields=(
            _types(
                lambda _, layers: [
                    FULL if layer % 4 == 2 else SLIDING if layer % 4 == 0 and layer else "conv"
                    for layer in range(layers)
                ]
            ),
        )
    ),
    "llama4_text": Architecture(
        fields=(
            PerLayerList("no_rope_layers", default=rotary, sources=("no_rope_layer_interval",)),
            IndexList(
                "moe_layers",
                default=periodic("interleave_moe_layer_step", 1, hit=True, miss=False),
                sources=("interleave_moe_layer_step",),
            ),
            _types(by_rope("chunked_attention", FULL, ("attention_chunk_size",))),
        )
    ),
    "longcat_flash": Architecture(
        count=("num_layers",), fields=(multiple("num_hidden_layers", 2),)
    ),
    "mellum": Architecture(
        fields=(_types(constant(FULL)), PerLayerList("mlp_layer_types", constant("sparse")))
    ),
    "mimo_v2_flash": Architecture(
        fields=(
            _types(where(lambda layer, _: layer == 0 or layer % 6 == 5)),
            _experts(),
            PerLayerList("hybrid_layer_pattern", or_one=True),
            PerLayerList("moe_layer_freq", or_one=True),
        )
    ),
    "minicpm3": Architecture(fields=(ScaledByDepth("scale_depth", default=1.4),)),
    "minimax": Architecture(
        fields=(
            _types(periodic(None, 2, hit=LINEAR, miss=FULL)),
            PerLayerList("attn_type_list"),
            Requirement(
                "the first layer that stays would have linear attention before layers of full "
                "attention, and the cache of its class counts the tokens in the first layer",
                lambda config, layers: not linear_before_full(config, layers),
            ),
        ),
        stored=("slope_rate",),
    ),
    "minimax_m2": Architecture(fields=(PerLayerList("attn_type_list"),)),
    "minimax_m3_vl_text": Architecture(
        fields=(
            _types(
                listed(
                    "sparse_attention_config.sparse_attention_freq",
                    "minimax_m3_sparse",
                    FULL,
                    constant(FULL),
                )
            ),
            PerLayerList(
                "mlp_layer_types",
                default=listed("moe_layer_freq", "sparse", "dense", constant("sparse")),
            ),
            PerLayerList("sparse_attention_config.sparse_attention_freq"),
            PerLayerList("moe_layer_freq", or_one=True),
        )
    ),
    "modernbert-decoder": Architecture(
        fields=(
            _types(
                periodic("global_attn_every_n_layers", 3, offset=0), "global_attn_every_n_layers"
            ),
            EndStays("first", "only it has no norm before its attention"),
        )
    ),
    "moshi": Architecture(stacks=("model.layers", "decoder.model.layers")),
    "mpt": Architecture(stacks=("transformer.blocks",), count=("n_layers", "num_hidden_layers")),
    "mvp": replace(
        _ENCODER_DECODER,
        sliced=(
            SlicedTensor("attn_prompt.prompt_trans.2.weight", 0),
            SlicedTensor("attn_prompt.prompt_trans.2.bias", 0),
        ),
    ),
    "nemotron_h": Architecture(
        stacks=("model.layers", "backbone.layers"),
        fields=(
            PerLayerList("layer_types"),
            PerLayerList("layers_block_type"),
            PatternString("hybrid_override_pattern"),
        ),
    ),
    "olmo3": Architecture(fields=(_types(periodic(None, 4)),)),
    "olmo_hybrid": Architecture(
        fields=(
            _types(
                lambda _, layers: [
                    FULL if layer % 4 == 3 or (layers < 4 and layer == layers - 1) else LINEAR
                    for layer in range(layers)
                ]
            ),
            needs_type(
                "layer_types",
                LINEAR,
                "its config class asks for at least one layer of linear attention",
            ),
        )
    ),
    "opt": Architecture(stacks=("model.decoder.layers",)),
    "prophetnet": Architecture(
        stacks=("prophetnet.decoder.layers",), count=("num_decoder_layers",)
    ),
    "qwen2": Architecture(fields=_QWEN2),
    "qwen2_moe": Architecture(
        fields=(
            _sliding_count(28),
            _types(even_below_window),
            SPARSE_STEP,
        )
    ),
    "qwen3": Architecture(fields=_QWEN2),
    **dict.fromkeys(
        ("qwen3_5_moe_text", "qwen3_5_text"),
        Architecture(
            stacks=("model.layers", "model.language_model.layers"), fields=(_HYBRID_QWEN,)
        ),
    ),
    "qwen3_moe": Architecture(fields=(SPARSE_STEP, _sliding_count(None))),
    "qwen3_next": Architecture(fields=(_HYBRID_QWEN, SPARSE_STEP)),
    "qwen4_exp_text": Architecture(
        stacks=("model.layers", "model.language_model.layers"),
        fields=(
            _types(
                periodic("full_attention_interval", 4, hit=INDEXED, miss=LINEAR),
                "full_attention_interval",
            ),
            _PLE_LAYERS,
            ordinal_among(
                lambda config, layers: _PLE_LAYERS.read(config, layers) or [False] * layers,
                "layers with embeddings of their own size their tables by their ordinal among each "
                "other: of these only the last can go",
            ),
        ),
    ),
    "recurrent_gemma": Architecture(
        fields=(
            CYCLE,
            needs_layer(
                lambda config, layers: [
                    kind != "recurrent" for kind in CYCLE.read(config, layers) or ()
                ],
                NO_ATTENTION,
            ),
        )
    ),
    "reformer": Architecture(
        stacks=("reformer.encoder.layers",), fields=(PerLayerList("attn_layers"),)
    ),
    "roberta-prelayernorm": Architecture(stacks=("roberta_prelayernorm.encoder.layer",)),
    "rwkv": Architecture(
        stacks=("rwkv.blocks",),
        fields=(HALVINGS,),
        first_only=("pre_ln.",),
    ),
    **dict.fromkeys(
        ("qwen2_5_omni_text", "qwen2_5_vl_text", "qwen2_vl_text"),
        Architecture(
            fields=(
                _sliding_count(80),
                _types(sliding_from("max_window_layers", 80)),
            )
        ),
    ),
    **dict.fromkeys(
        ("qwen3_omni_moe_text", "qwen3_vl_moe_text"), Architecture(fields=(SPARSE_STEP,))
    ),
    "sarvam_mla": Architecture(fields=(LeadingCount("first_k_dense_replace", default=1),)),
    "sarvam_moe": Architecture(fields=(LeadingCount("first_k_dense_replace", default=1),)),
    "smollm3": Architecture(
        fields=(
            PerLayerList("no_rope_layers", default=rotary, sources=("no_rope_layer_interval",)),
            _types(by_rope(FULL, SLIDING, ("use_sliding_window", "sliding_window"))),
            _sliding_count(None),
        )
    ),
    "trocr": Architecture(
        stacks=("model.decoder.layers",), count=("decoder_layers", "num_hidden_layers")
    ),
    "vaultgemma": Architecture(fields=(_types(periodic(None, 2)),)),
    "xglm": Architecture(count=("num_layers", "num_hidden_layers")),
    "xlm": Architecture(
        stacks=(
            "transformer.attentions",
            "transformer.layer_norm1",
            "transformer.ffns",
            "transformer.layer_norm2",
        ),
        count=("n_layers", "num_hidden_layers", "n_hidden_layers"),
    ),
    "xlnet": Architecture(stacks=("transformer.layer",), count=("n_layer", "num_hidden_layers")),
    "xlstm": Architecture(stacks=("backbone.blocks",), count=("num_hidden_layers", "num_blocks")),
    "zamba": Architecture(
        fields=(
            PerLayerList(
                "layers_block_type", zamba_kinds, ("attn_layer_period", "attn_layer_offset")
            ),
            ordinal_among(hybrids(zamba_kinds), _SHARES_BLOCK, most=1),
            Requirement(
                "only one of the layers that share a block of attention would stay, which its "
                "class cannot build",
                lambda config, layers: sum(map(bool, hybrids(zamba_kinds)(config, layers))) != 1,
            ),
        )
    ),
    "zamba2": Architecture(
        fields=(
            PerLayerList("layer_types"),
            PerLayerList("layers_block_type", zamba2_kinds),
            IndexList("hybrid_layer_ids"),
            ordinal_among(
                hybrids(zamba2_kinds),
                "the layers that share a block of attention store their parts of it with the first "
                "of them, by their ordinal among each other: none of these can go",
                all_stay=True,
            ),
        )
    ),
    "zaya": Architecture(
        fields=(
            _types(constant("hybrid")),
            EndStays("first", "only its router takes nothing from the layer before"),
        )
    ),
    # --- the decoders of multimodal models ----------------------------------------------
    "diffusion_gemma_text": Architecture(fields=(_types(_LAST_FULL_OF_SIX), _LAST_IS_FULL)),
    "ernie4_5_vl_moe_text": Architecture(fields=(_experts(),)),
    "glm4v_moe_text": Architecture(fields=(LeadingCount("first_k_dense_replace", default=1),)),
    "glm5_next_text": Architecture(
        fields=(
            _types(periodic(None, 4, hit=INDEXED, miss=LINEAR)),
            _INDEXER_TYPES,
            NEIGHBOURS_INDEXERS,
            _experts(None, 3),
        )
    ),
    "hy_v4_vl_text": Architecture(fields=_HY_V4),
    "mistral4": Architecture(fields=(LeadingCount("first_k_dense_replace", default=0),)),
    "mistral_large4_text": Architecture(
        fields=(
            *_GLM_SPARSE,
            _experts("first_k_dense_replace", 1),
            PerLayerList("no_rope_layers", default=rotary, sources=("no_rope_layer_interval",)),
            SHARED_SOURCES,
            SHARED_LATENTS,
        )
    ),
    "molmo2_text": Architecture(fields=(IndexList("rope_scaling_layers", constant(True)),)),
    "muse_glimmer_text": Architecture(fields=_MUSE),
    "muse_spark_text": Architecture(
        fields=(*_MUSE, PerLayerList("mlp_layer_types", constant("sparse")))
    ),
    "step3p5": Architecture(
        fields=(
            PerLayerList("layer_types", constant(FULL), longer=True),
            SPARSE_LIST,
            PerLayerList(
                "mlp_layer_types",
                lambda config, layers: [
                    "sparse" if sparse else "dense"
                    for sparse in SPARSE_LIST.read(config, layers) or [False] * layers
                ],
                longer=True,
            ),
            *(
                PerLayerList(key, longer=True, or_one=True)
                for key in (
                    *("swiglu_limits", "swiglu_limits_shared"),
                    *("rope_theta", "partial_rotary_factors"),
                )
            ),
        )
    ),
    **dict.fromkeys(("t5gemma2_decoder", "t5gemma2_text"), Architecture(fields=(_gemma3_types(),))),
    "unlimited_ocr_text": Architecture(
        fields=(
            _types(constant("reference_sliding_attention")),
            _experts("first_k_dense_replace", 1),
        )
    ),
}
"""By model type; also those that are only a part of a multimodal model."""
