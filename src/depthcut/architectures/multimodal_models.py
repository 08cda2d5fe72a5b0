"""Models that see or hear beside reading: where their text decoder lies. The rest is carried.

What the config says of the decoder's layers is mostly said in its own part of it, and known by
the decoder's model type (`text_models`).
"""

from dataclasses import replace

from depthcut.architectures.entry import Architecture
from depthcut.architectures.fields import IndexList, Requirement
from depthcut.architectures.layouts import (
    FEATURES_BEHIND_FIRST_LAYERS,
    INJECTED_FEATURES,
    NOT_LONGER_THAN_THE_ENCODER,
    cross_attention_first,
)
from depthcut.architectures.text_models import EMBEDDINGS_PER_LAYER, GEMMA4

_NESTED = Architecture(
    stacks=(
        *("model.language_model.layers", "language_model.model.layers"),
        *("model.text_model.layers", "text_model.model.layers", "model.llm.layers"),
        *("model.layers", "layers", "thinker.model.layers"),
        "model.language_model.model.layers",
    ),
    decoder="text_config",
)
"""The torch path of today, and the names under which today's and older versions save it."""
_OPT = replace(_NESTED, stacks=("language_model.model.decoder.layers",))

_INNER_TYPES = {
    "aya_vision": "cohere2",
    "blip": "blip_text_model",
    "blip-2": "opt",
    "cohere2_vision": "cohere2",
    "cosmos3_omni": "qwen3_vl_text",
    "deepseek_vl": "llama",
    "deepseek_vl_hybrid": "llama",
    "emu3": "emu3_text_model",
    "exaone4_5": "exaone4",
    "fast_vlm": "qwen2",
    "florence2": "bart",
    "fuyu": "persimmon",
    "gemma4_assistant": "gemma4_text",
    "gemma4_unified_assistant": "gemma4_unified_text",
    "glm46v": "glm4v_text",
    "glmga": "glm4v_text",
    "got_ocr2": "qwen2",
    "hyperclovax_vision_v2": "hyperclovax",
    "idefics2": "mistral",
    "idefics3": "llama",
    "inkling_mm_model": "inkling_text",
    "instructblip": "opt",
    "instructblipvideo": "opt",
    "internvl": "qwen2",
    "janus": "llama",
    "kimi_k25": "deepseek_v3",
    "kosmos-2": "kosmos_2_text_model",
    "kosmos-2.5": "kosmos_2_5_text_model",
    "lfm2_vl": "lfm2",
    "lfm3_vl": "lfm3",
    "lighton_ocr": "qwen3",
    "llava": "llama",
    "llava_next": "llama",
    "llava_next_video": "llama",
    "llava_onevision": "qwen2",
    "minicpm_ocr": "qwen3_5_text",
    "minicpmv4_6": "qwen3_5_text",
    "minicpmv4_7": "qwen3_5_text",
    "mistral3": "mistral",
    "mllama": "mllama_text_model",
    "moss_transcribe_diarize": "qwen3",
    "musicgen": "musicgen_decoder",
    "musicgen_melody": "musicgen_melody_decoder",
    "nemotron_h_omni": "nemotron_h",
    "ovis2": "qwen2",
    "paligemma": "gemma",
    "perception_lm": "llama",
    "pix2struct": "pix2struct_text_model",
    "pp_chart2table": "qwen2",
    "qianfan_ocr": "qwen3",
    "qwen2_5_omni_thinker": "qwen2_5_omni_text",
    "qwen3_omni_moe_thinker": "qwen3_omni_moe_text",
    "shieldgemma2": "gemma3_text",
    "smolvlm": "llama",
    "step3p7": "step3p5",
    "t5gemma2": "t5gemma2_decoder",
    "video_llama_3": "qwen2",
    "video_llava": "llama",
    "vipllava": "llama",
    "vision-encoder-decoder": "bert",
}
"""Model types of decoders that are not the outer one's with _text behind it."""

_ENTRIES: dict[str, Architecture] = {
    **dict.fromkeys(
        (
            *("apertus1p5", "aria", "aya_vision", "cohere2_vision", "cosmos3_edge"),
            *("deepseek_ocr2", "deepseek_vl", "deepseek_vl_hybrid", "dots3_note", "emu3"),
            *("ernie4_5_vl_moe", "exaone4_5", "fast_vlm", "fuyu", "gemma3", "glm46v", "glm4v"),
            *("glm4v_moe", "glm5_next", "glm_ocr", "glmga", "got_ocr2", "hunyuan_vl"),
            *("hy_v4_vl", "hyperclovax_vision_v2", "idefics2", "idefics3"),
            *("inkling_mm_model", "internvl", "janus", "lfm2_vl", "lfm3_vl", "lighton_ocr"),
            *("llama4", "llava", "llava_next", "llava_next_video", "llava_onevision"),
            *("minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "mistral3"),
            *("mistral_large4", "moss_transcribe_diarize", "muse_glimmer", "muse_spark"),
            *("ovis2", "paddleocr_vl", "paligemma", "perception_lm", "pp_chart2table"),
            *("qwen2_5_omni_thinker", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_5_moe"),
            *("qwen4_exp", "shieldgemma2", "smolvlm", "step3p7", "unlimited_ocr", "video_llama_3"),
            *("video_llava", "vipllava"),
        ),
        _NESTED,
    ),
    **dict.fromkeys(
        (
            *("cohere_compass", "cosmos3_omni", "granite_docling", "qwen3_omni_moe_thinker"),
            *("qwen3_vl", "qwen3_vl_moe"),
        ),
        replace(_NESTED, fields=(FEATURES_BEHIND_FIRST_LAYERS,)),
    ),
    **dict.fromkeys(("blip-2", "instructblip", "instructblipvideo"), _OPT),
    "blip": replace(_NESTED, stacks=("text_decoder.bert.encoder.layer",)),
    "diffusion_gemma": replace(
        _NESTED, stacks=("model.decoder.layers", "model.encoder.language_model.layers")
    ),
    "evolla": Architecture(
        refusal="which layers have an adapter follows from the number of all layers: a layer less "
        "would ask for adapters elsewhere"
    ),
    "florence2": replace(
        _NESTED,
        stacks=("model.language_model.decoder.layers",),
        count=("decoder_layers",),
        fields=(NOT_LONGER_THAN_THE_ENCODER,),
    ),
    "gemma3n": replace(_NESTED, sliced=EMBEDDINGS_PER_LAYER),
    "gemma4": replace(_NESTED, fields=GEMMA4, sliced=EMBEDDINGS_PER_LAYER),
    "gemma4_unified": replace(_NESTED, fields=GEMMA4),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"), replace(_NESTED, fields=GEMMA4)
    ),
    "granite4_vision": replace(_NESTED, fields=(INJECTED_FEATURES,)),
    "idefics": Architecture(
        refusal="a layer of cross-attention stands before every n-th layer by its index: a layer "
        "less would move those places"
    ),
    **dict.fromkeys(
        ("inkling2", "inkling2_loop"),
        replace(
            _NESTED,
            refusal="every n-th layer by its index starts a block that all later layers attend "
            "to: a layer less would move those starts",
        ),
    ),
    "kimi_k25": replace(_NESTED, stacks=("language_model.model.blocks", *_NESTED.stacks)),
    **dict.fromkeys(
        ("kosmos-2", "kosmos-2.5"),
        replace(_NESTED, stacks=("text_model.model.layers",), count=("layers",)),
    ),
    **dict.fromkeys(
        ("mllama", "mllama_text_model"),
        replace(
            _NESTED,
            fields=(
                IndexList(
                    "cross_attention_layers",
                    default=lambda _, layers: [layer % 5 == 3 for layer in range(layers)],
                ),
                Requirement(
                    "the first layer that stays would be one of cross-attention, and the cache "
                    "counts the tokens in the first layer",
                    lambda config, layers: not cross_attention_first(config, layers),
                ),
            ),
        ),
    ),
    "molmo2": replace(_NESTED, stacks=("model.transformer.blocks", *_NESTED.stacks)),
    "musicgen": Architecture(stacks=("decoder.model.decoder.layers",), decoder="decoder"),
    "musicgen_melody": Architecture(stacks=("decoder.model.decoder.layers",), decoder="decoder"),
    "nemotron_h_omni": replace(
        _NESTED, stacks=("language_model.model.layers", "language_model.backbone.layers")
    ),
    "pi0": Architecture(
        refusal="two stacks of different width share their keys and values layer by layer: it is "
        "no generator of text"
    ),
    "pix2struct": replace(
        _NESTED,
        stacks=("decoder.layer",),
        count=("num_layers", "num_hidden_layers"),
        first_only=("self_attention.attention.relative_attention_bias.",),
    ),
    "pp_formulanet": replace(_NESTED, stacks=("model.decoder.layers",), count=("decoder_layers",)),
    "qianfan_ocr": replace(
        _NESTED, stacks=("language_model.model.encoder.layers", *_NESTED.stacks)
    ),
    "t5gemma2": Architecture(stacks=("model.decoder.layers",), decoder="decoder"),
    "udop": Architecture(
        stacks=("decoder.block",),
        count=("num_decoder_layers",),
        first_only=("layer.0.SelfAttention.relative_attention_bias.",),
    ),
    "vision-encoder-decoder": Architecture(
        stacks=(
            "decoder.bert.encoder.layer",
            "decoder.model.decoder.layers",
            "decoder.transformer.h",
        ),
        decoder="decoder",
        count=("num_hidden_layers", "decoder_layers", "n_layer"),
    ),
}

MULTIMODAL_MODELS: dict[str, Architecture] = {
    name: replace(entry, inner=_INNER_TYPES.get(name, f"{name}_text")) if entry.decoder else entry
    for name, entry in _ENTRIES.items()
}
"""Each decoder with the type that its class takes where the config does not say it."""
