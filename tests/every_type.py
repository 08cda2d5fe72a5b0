"""Tiny random models of every type that transformers builds for causal language or image and text.

From the configuration class alone: its defaults are shrunk key by key, and layers made uneven, so
that a layer in the wrong place shows. OVERRIDES has what no rule knows.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

Config = dict[str, Any]

LAYERS = 6
_SIDE_LAYERS = 2
"""Of encoders and towers."""

_IMAGE = "its forward pass needs an image"
_TIMM = "its vision tower is a timm model, a package that the tests do without"
UNBUILDABLE: dict[str, str] = {
    "blip": _IMAGE,
    "blip-2": _IMAGE,
    "evolla": "the auto class has no entry for it",
    "fast_vlm": _TIMM,
    "gemma3n": _TIMM,
    "gemma4_assistant": "drafts from the keys and values of another model",
    "gemma4_unified_assistant": "drafts from the keys and values of another model",
    "idefics": _IMAGE,
    "instructblip": _IMAGE,
    "instructblipvideo": _IMAGE,
    "kosmos-2": _IMAGE,
    "musicgen": "the auto class gives its decoder the configuration of the whole model",
    "musicgen_melody": "the auto class gives its decoder the configuration of the whole model",
    "perception_lm": _TIMM,
    "pi0": "its forward pass needs an image and the state of a robot",
    "pix2struct": _IMAGE,
    "pp_formulanet": _IMAGE,
    "shieldgemma2": "the auto class does not load what it saves: names differ",
    "t5gemma2": "an encoder and a decoder: no causal language model",
    "udop": "its forward pass needs the boxes of the words",
    "vision-encoder-decoder": _IMAGE,
}
"""By model type: why it cannot be a tiny model that reads tokens alone."""


def _words(text: str) -> list[str]:
    return text.split()


_SIZES: Mapping[int, str] = {
    512: """
        context_length max_2d_position_embeddings max_position_embeddings max_seq_len
        max_target_positions model_max_length n_ctx n_positions original_max_position_embeddings
    """,
    264: """
        decoder_vocab_size encoder_hash_byte_group_vocab ngram_vocab_size_base
        pronunciation_vocab_size shape_vocab_size unpadded_vocab_size vocab_size
        vocab_size_per_layer_input
    """,
    96: """
        alignment_intermediate_size d_ff d_inner decoder_ffn_dim decoder_intermediate_size
        dense_intermediate_size dff dim_ff encoder_ffn_dim feed_forward_size ffn_dim ffn_hidden_size
        intermediate_size intermediate_size_mlp merged_hidden_size mlp_dim n_inner
        prefix_dense_intermediate_size projection_intermediate_size
    """,
    64: """
        adapter_out_dim backbone_hidden_size cross_attention_hidden_size d_model decoder_hidden_size
        emb_dim embed_dim embedding_dim embedding_size encoder_hidden_size hidden_size
        hidden_size_global image_text_hidden_size input_size lru_width n_embd out_hidden_size
        output_channels output_dim post_conv_out_channels projection_dim projection_hidden_dim
        projection_hidden_size projector_hidden_size projector_input_dim projector_output_dim
        text_hidden_size vision_hidden_size vision_output_dim word_embed_proj_dim
    """,
    32: """
        base_channels dim_model_base expert_ffn_hidden_size image_size image_token_embed_dim
        input_embedding_size latent_channels linear_head_dim max_img_size moe_hidden_size
        moe_intermediate_size moe_shared_expert_intermediate_size output_embedding_size
        ple_embed_dim resolution router_hidden_size share_expert_dim shared_expert_intermediate_size
        shared_experts_intermediate_size shared_intermediate_size
    """,
    16: """
        adapter_rank attention_head_dim attention_head_size block_multiple_of d_head d_kv
        depthwise_separable_out_channel dim_head downsample_hidden_size ext_pw_out_channel
        hc_lowrank head_dim hidden_size_per_layer_input index_head_dim kv_channels kv_lora_rank
        laurel_rank linear_key_head_dim linear_value_head_dim loop_gate_rank mamba_d_head
        mamba_head_dim mamba_headdim max_image_size mel_vocab_size nemo_conv_channels num_filters
        o_lora_rank pronunciation_embed_dim q_lora_rank qk_nope_head_dim query_pre_attn_scalar
        resampler_dim_head resampler_head_dim shape_embed_dim swa_head_dim v_head_dim
    """,
    8: """
        attention_chunk_size attention_window_size block_size chunk_size gated_norm_rank
        index_block_size index_topk keep_window_size local_attention local_attention_window_len
        mamba_chunk_size mamba_d_state mamba_dt_rank mamba_n_heads mamba_num_heads mem_len
        moe_latent_size n_mamba_heads num_sliding_attention_heads patch_size qk_rope_head_dim
        rel_extent rotary_dim sliding_window sliding_window_size split_ngram_parts ssm_state_size
        state_size time_step_rank window_size
    """,
    4: """
        attention_heads decoder_attention_heads encoder_attention_heads linear_num_heads
        linear_num_value_heads moe_num_experts n_head n_heads n_routed_experts num_attention_heads
        num_attention_heads_per_layer num_decoder_attention_heads num_encoder_attention_heads
        num_experts num_heads num_image_tokens num_local_experts num_query_groups
        swa_num_attention_heads zero_expert_num
    """,
    2: """
        first_k_dense_replace index_n_heads index_topk_blocks kv_n_heads linear_num_key_heads moe_k
        moe_top_k moe_topk num_dense_layers num_experts_per_tok num_experts_per_token
        num_key_value_heads num_kv_heads o_groups resampler_depth swa_num_key_value_heads
        top_k_experts
    """,
    1: """
        mamba_n_groups mamba_ngroups n_group n_groups n_shared_experts num_codebooks
        num_expert_group num_nextn_predict_layers topk_group
    """,
}
"""By size: the fields that get it."""
_SIZE_OF = {key: size for size, keys in _SIZES.items() for key in _words(keys)}
_COUNTS = _words("""
    decoder_layers num_decoder_layers num_hidden_layers n_layer n_layers num_layers layers
    num_blocks
""")
"""Fields that count the layers; the first that a configuration has is the one that counts."""
_SIDE_COUNTS = _words("""
    aligner_num_add_layers conf_num_hidden_layers decoder_num_layers depth encoder_layers
    num_encoder_layers num_global_layers num_res_blocks
""")
_SET_IF_NONE = _words("""
    head_dim moe_intermediate_size n_routed_experts n_shared_experts num_experts num_experts_per_tok
    num_key_value_heads sliding_window top_k_experts
""")
_TOKENS = {"bos": 256, "eos": 256, "pad": 257, "cls": 256, "sep": 256, "decoder_start": 256}
_TEXT = ("text", "decoder", "language", "vlm")
"""Words in the names of sub-configs whose layers are the model's."""
_ORDERS = {2: (0, 0, 1, 0, 1, 1), 3: (0, 0, 1, 0, 2, 1), 4: (0, 1, 2, 0, 3, 1)}
_MLP_ORDER = (0, 0, 1, 1, 0, 1)
"""Of the kinds of layers: none has a period, and the kinds of MLP are not those of attention."""

OVERRIDES: Mapping[str, Config] = yaml.safe_load("""
apertus1p5:
  image_token_offset: 258
  audio_token_offset: 260
  vision_config: {codebook_size: 2}
  audio_config: {codebook_size: 2, codebook_dim: 64}
bamba: {attn_layer_indices: [1, 4]}
blt_global_transformer: {num_hidden_layers: 6}
blt_local_decoder: {num_hidden_layers: 2}
chameleon: {vocabulary_map: {<image>: 258}}
cohere_compass_text:
  rope_parameters:
    full_attention: {rope_type: default, rope_theta: 1.0e+4}
    sliding_attention: {rope_type: default, rope_theta: 500.0}
dbrx: {attn_config: {rope_theta: 1.0e+4, clip_qkv: 8.0}}
deepseek_ocr2_text: {mlp_layer_types: [dense, dense, sparse, sparse, dense, sparse]}
diffusion_gemma_text: {global_head_dim: 32}
dory: {num_hidden_layers: 6, n_input_layers: 2, n_recurrent_layers: 2, n_output_layers: 2,
  layer_types: [sliding_attention, sliding_attention, full_attention, sliding_attention,
    full_attention, full_attention]}
dots3_note: {vision_config: {adapter_in_dim: 64}, audio_config: {adapter_input_size: 64}}
dots3_note_text: {rope_parameters: null, head_dim: 24, swa_num_attention_heads: 2,
  swa_num_key_value_heads: 2, swa_q_lora_rank: 16, swa_kv_lora_rank: 32, swa_head_dim: 24,
  swa_qk_nope_head_dim: 16, swa_v_head_dim: 16}
emu3: {vocabulary_map: {<image>: 258, <|extra_200|>: 259, <|visual token 000000|>: 260}}
ernie4_5_moe: {moe_layer_start_index: 1, moe_layer_end_index: 4}
ernie4_5_vl_moe_text: {rope_parameters: {mrope_section: [3, 3, 2]}, moe_intermediate_size: [32, 16]}
falcon_h1: {mamba_d_ssm: 128}
florence2: {vision_config: {depths: [1, 1, 1, 1], embed_dim: [16, 16, 32, 32],
  num_heads: [2, 2, 4, 4], num_groups: [2, 2, 4, 4]}}
gemma3n_text: {num_kv_shared_layers: 3}
gemma4_text: {num_kv_shared_layers: 3, global_head_dim: 32}
gemma4_unified_text: {global_head_dim: 32}
glm_moe_dsa: {indexer_types: [full, full, shared, full, shared, full]}
glm4v_moe_text: {rope_parameters: {mrope_section: [1, 1, 2]}}
glm5_next_text: {index_kpool: 4}
gpt_neo: {attention_types: [[[global, local], 3]]}
granite_swa: {layer_rope_theta: &thetas [1.0e+4, 500.0, 1.0e+4, 1.0e+4, 500.0, 500.0]}
granite4_vision: {deepstack_layer_map: [[0, 1], [1, 3]], spatial_target_layers: [2, 4],
  downsample_rate: 1/2}
granitemoe_swa: {layer_rope_theta: *thetas}
granitemoehybrid: {layer_types: [linear_attention, linear_attention, full_attention,
  linear_attention, full_attention, full_attention]}
hrm_text: {num_layers_per_stack: null}
hy_v4_vl_text: {rope_parameters: {mrope_section: [2, 1, 1]}}
inkling2_loop_text: {n_layers_per_attn_res_block: 2, loop_layer_index_start: 2,
  loop_layer_index_end: 4}
inkling2_text: {n_layers_per_attn_res_block: 2}
jamba: {attn_layer_period: 3, attn_layer_offset: 1, expert_layer_period: 2}
lfm2: {full_attn_idxs: [2, 4, 5],
  layer_types: &conv [conv, conv, full_attention, conv, full_attention, full_attention]}
lfm2_moe: {layer_types: *conv}
llama4_text: {moe_layers: [1, 3, 4]}
mamba2: {num_heads: 8}
minimax_m3_vl_text: {layer_types: [full_attention, minimax_m3_sparse, full_attention,
  full_attention, minimax_m3_sparse, minimax_m3_sparse]}
ministral: {layer_types: [sliding_attention, sliding_attention, full_attention, sliding_attention,
  full_attention, full_attention]}
mistral4: {rope_parameters: {partial_rotary_factor: 0.33334}}
mistral_large4_text: {kv_source_layers: [0, 1, 1, 3, 3, 5], no_rope_layers: [1, 1, 1, 0, 0, 1],
  indexer_types: [full, full, shared, full, shared, full]}
mllama_text_model: {cross_attention_layers: [1, 4]}
molmo2: {adapter_config: {vision_feature_layer: [-1, -2]}}
nemotron_h: {layers_block_type: [linear_attention, moe, full_attention, mlp, linear_attention, moe]}
nemotron_h_omni: {vision_config: {video_temporal_patch_size: 2}}
qwen4_exp_text: {eos_token_id: 256, indexer_n_heads: 2, indexer_kv_heads: 1, indexer_head_dim: 16,
  indexer_budget: 8, indexer_compress_ratio: 2, ple_layer_ids: [2, 4], heads_per_ngram: 2}
reformer: {is_decoder: true, axial_pos_shape: [16, 32], axial_pos_embds_dim: [16, 48], hash_seed: 0,
  num_buckets: 2}
rwkv: {rescale_every: 2}
xmod: {default_language: en_XX}
zamba2: {num_mem_blocks: 2}
zaya: {num_experts_per_tok: 1, sliding_window: 8,
  layer_types: [hybrid, hybrid, hybrid_sliding, hybrid, hybrid_sliding, hybrid_sliding]}
""")
"""By the model type of a configuration or sub-config: what its shrunk defaults lack."""
_SECTIONS = _words("""
    glm4v_text glm_ocr_text hunyuan_vl_text paddleocr_vl_text qwen2_5_omni_text qwen2_5_vl_text
    qwen2_vl_text
""")
"""Types that count on a default of `mrope_section` for another head size."""

VARIANTS: Mapping[str, tuple[str, Config]] = {
    "bamba of one kind": ("bamba", {"attn_layer_indices": None}),
    "deepseek_v3 all sparse": ("deepseek_v3", {"first_k_dense_replace": 0}),
    "dory without loops": ("dory", {"n_recurrent_loops": 1}),
    "ernie4_5_moe every other layer": (
        "ernie4_5_moe",
        {"moe_layer_interval": 2, "moe_layer_start_index": 0, "moe_layer_end_index": 5},
    ),
    "falcon of the new architecture": ("falcon", {"new_decoder_architecture": True}),
    "falcon with alibi": ("falcon", {"alibi": True}),
    "gemma4_text with experts": ("gemma4_text", {"enable_moe_block": True}),
    "gemma4_text without sharing": ("gemma4_text", {"num_kv_shared_layers": 0}),
    "gpt2 scaled by depth": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt2 upcast": ("gpt2", {"reorder_and_upcast_attn": True}),
    "jamba by long periods": ("jamba", {"attn_layer_period": 6, "expert_layer_period": 4}),
    "llama4_text every other layer": (
        "llama4_text",
        {"moe_layers": None, "interleave_moe_layer_step": 2},
    ),
    "opt with norms after": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "qwen2 of one kind": ("qwen2", {"use_sliding_window": False, "layer_types": None}),
    "qwen3_moe with two dense layers": (
        "qwen3_moe",
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]},
    ),
}
"""Further settings worth a cut: name to model type and changes."""


def model_types() -> list[str]:
    """All types of both lists, those of causal language models first."""
    names = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return [name for name in dict.fromkeys(names) if name not in UNBUILDABLE]


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    """The configuration class's defaults, shrunk; `changes` reach into sub-configs as dicts."""
    cls = CONFIG_MAPPING[model_type]
    settings = _shrink(cls().to_dict(), layers=LAYERS)
    _update(settings, changes)
    return cls(**settings)


def auto_class(model_type: str) -> Any:
    """What loads a checkpoint of this type whole."""
    # Llama4ForConditionalGeneration fails without an image, by an attribute that its output lacks.
    if model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and model_type != "llama4":
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def build(model_type: str, **changes: object) -> PreTrainedModel:
    """A random model in evaluation mode: seed 0, float32, the same on every call."""
    return from_config(tiny_config(model_type, **changes), auto_class(model_type))


def from_config(config: PretrainedConfig, auto: Any) -> PreTrainedModel:
    """The random model of a configuration by an auto class, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:  # the usual 0.02 is too small to tell layers apart
                    torch.nn.init.normal_(parameter, std=0.08)
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def _shrink(default: Mapping[str, Any], *, layers: int) -> Config:
    """What must change in a configuration of these defaults for it to be tiny and uneven."""
    counts = [key for key in _COUNTS if isinstance(default.get(key), int)]
    small: Config = dict.fromkeys(counts[:1], layers)
    for key, value in default.items():
        if isinstance(value, dict) and key.endswith(("_config", "encoder", "decoder")):
            if key != "per_layer_config":
                text = any(word in key for word in _TEXT)
                small[key] = _shrink(value, layers=layers if text else _SIDE_LAYERS)
        elif key in counts:
            pass
        elif counts and isinstance(value, list) and len(value) == default[counts[0]]:
            small[key] = _uneven(key, value, default, layers)
        elif (new := _smaller(key, value)) is not None:
            small[key] = new
    small |= _together(default)
    if model_type := default.get("model_type"):
        small["model_type"] = model_type
        _update(small, OVERRIDES.get(model_type, {}))
        if model_type in _SECTIONS:
            _update(small, {"rope_parameters": {"mrope_section": [2, 3, 3]}})
    return small


def _smaller(key: str, value: Any) -> Any:
    if key in _SIDE_COUNTS:
        return _SIDE_LAYERS
    if key.endswith(("_token_id", "_token_index")) and isinstance(value, int):
        return _TOKENS.get(key.removesuffix("_token_id"), value if value < 264 else 258)
    if key == "rope_parameters" and isinstance(value, dict):
        return _smaller_rope(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _SIZE_OF.get(key) if value or key == "first_k_dense_replace" else None
    return _SIZE_OF[key] if value is None and key in _SET_IF_NONE else None


def _together(default: Mapping[str, Any]) -> Config:
    """Fields that hold only together with others."""
    found: Config = {}
    if "kv_lora_rank" in default:  # latent attention: as many keys as queries
        found |= {"num_key_value_heads": 4, "qk_head_dim": 24}
        found |= {"head_dim": 8} if default.get("head_dim") else {}
    for key in {"encoder_layers", "num_encoder_layers"} & default.keys():
        if key.replace("en", "de", 1) in default:  # transformers makes caches of the encoder's size
            found |= {key: 8}
    if default.get("is_decoder") is False:  # then BERT and its kin look ahead and keep no cache
        found |= {"is_decoder": True}
    if "use_sliding_window" in default:
        found |= {"use_sliding_window": True, "max_window_layers": 3, "sliding_window": 8}
    if "decoder_sparse_step" in default:
        found |= {"decoder_sparse_step": 2, "mlp_only_layers": [3]}
    return found


def _uneven(key: str, values: list[Any], default: Mapping[str, Any], layers: int) -> list[Any]:
    """The same kinds of values for so many layers, in an order of no period."""
    if values == list(range(len(values))):  # numbers of layers
        return list(range(layers))
    kinds = [value for place, value in enumerate(values) if value not in values[:place]]
    if key in _SIZE_OF:
        kinds = [_SIZE_OF[key], 2 * _SIZE_OF[key]]
    elif kinds == ["full_attention"] and "sliding_window" in default:
        kinds = ["full_attention", "sliding_attention"]
    elif kinds == ["sparse"] and "intermediate_size" in default:
        kinds = ["dense", "sparse"]
    if len(kinds) == 1:
        return kinds * layers
    order = _MLP_ORDER if key.startswith("mlp") else _ORDERS[len(kinds)]
    return [kinds[order[layer]] for layer in range(layers)]


def _smaller_rope(rope: Config) -> Config:
    new = copy.deepcopy(rope)
    for value in (new, *(each for each in new.values() if isinstance(each, dict))):
        if sections := value.get("mrope_section"):
            half, count = int(16 * value.get("partial_rotary_factor", 1.0)) // 2, len(sections)
            value["mrope_section"] = [half // count + (i < half % count) for i in range(count)]
    return new


def _update(settings: Config, changes: Mapping[str, Any]) -> None:
    for key, value in copy.deepcopy(dict(changes)).items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            _update(settings[key], value)
        else:
            settings[key] = value
