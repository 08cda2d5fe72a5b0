"""The two parts of a layer, attention and MLP: their modules, and the tensors that end them.

Where both only add to the residual stream, a part whose last projection is zero is as if it were
not there.
"""

from collections.abc import Iterable

from depthcut.errors import ArchitectureError
from depthcut.records import PARTS, LayerPart

MODULES: dict[LayerPart, tuple[str, ...]] = {
    "attention": (
        *("self_attn", "attn", "attention", "self_attention", "multi_head_attention"),
        *("linear_attn", "cross_attn", "temporal_block", "mamba", "conv", "mlstm_layer"),
    ),
    "mlp": ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp", "ffn", "mlp_block", "fc2"),
}
"""What models call them, directly under a layer. Whatever mixes tokens counts as attention."""

_ENDS = frozenset(
    {
        *("o_proj", "out_proj", "dense", "c_proj", "Wo", "linear_out"),
        *("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h", "output_linear", "proj_down"),
    }
)
"""What models call the last projection within them."""

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def part_modules(children: Iterable[str]) -> dict[LayerPart, str]:
    """Which of a layer's modules are its attention and its MLP.

    Raises:
        ArchitectureError: Not exactly one of each.
    """
    names = list(children)
    found: dict[LayerPart, str] = {}
    for part in PARTS:
        named = [name for name in names if name in MODULES[part]]
        if len(named) != 1:
            raise ArchitectureError(
                f"a layer has {' and '.join(named) if named else 'none'} of {', '.join(names)} "
                f"as {part}: one attention and one MLP are needed"
            )
        found[part] = named[0]
    return found


def ended_part(tail: str) -> LayerPart | None:
    """The part whose last projection a tensor belongs to, weight or bias; None: it is another.

    Args:
        tail: Its name behind the index of the layer: `self_attn.o_proj.weight`.
    """
    first, *rest = tail.split(".")
    inside = (name.removesuffix("_bias") for name in (first, *rest))
    if _ENDS.isdisjoint(inside):
        return None
    return next((part for part in PARTS if first in MODULES[part]), None)


def is_plain(tail: str, dtype: str) -> bool:
    """Whether zero bytes make a tensor of a projection zero: numbers, and no packed ones."""
    leaf = tail.rpartition(".")[2].removesuffix("_bias")
    return dtype in _FLOATS and (leaf in ("weight", "bias") or leaf in _ENDS)


STREAM_NORMS = {"do_layer_norm_before": False}
"""Settings (of OPT) with which a layer norms the residual stream itself: it would still change it
without both parts."""

PROVED = frozenset(
    {
        *("afmoe", "apertus", "apertus1p5_text", "arcee", "aria_text", "axk1", "axk2"),
        *("bailing_hybrid", "bamba", "biogpt", "bitnet", "codegen", "cohere", "cohere2"),
        *("cohere2_moe", "cohere_compass_text", "cwm", "deepseek_v2", "deepseek_v3"),
        *("deepseek_v32", "diffllama", "dots1", "dots3_note", "dots3_note_text", "emu3"),
        *("ernie4_5", "ernie4_5_moe", "exaone", "exaone4", "exaone_moe", "falcon"),
        *("flex_olmo", "flint", "fuyu", "gemma", "gemma2", "gemma3", "gemma3_text"),
        *("gemma4_unified", "gemma4_unified_text", "glm", "glm4", "glm4_moe"),
        *("glm4_moe_lite", "got_ocr2", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo"),
        *("gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granite_swa"),
        *("granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hunyuan_v1_dense"),
        *("hunyuan_v1_moe", "hy_v3", "hyperclovax", "inkling_text", "internlm3"),
        *("iquestcoder", "jais2", "jamba", "kimi_linear", "kolibri1", "laguna", "lara_mini"),
        *("lfm2", "lfm2_moe", "lfm3", "llama", "llama4", "llama4_text", "mellum"),
        *("mimo_v2_flash", "minicpm3", "minimax_m2", "minimax_m3_vl_text", "ministral"),
        *("ministral3", "mistral", "mixtral", "mllama", "modernbert-decoder", "moshi"),
        *("moss_transcribe_diarize", "nanochat", "nemotron", "olmo", "olmo2", "olmo3"),
        *("olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phi3", "phi4_multimodal"),
        *("phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe"),
        *("qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "recurrent_gemma"),
        *("sarvam_mla", "sarvam_moe", "seed_oss", "smollm3", "solar_open", "stablelm"),
        *("starcoder2", "vaultgemma", "xglm", "xlstm", "youtu"),
    }
)
"""Model types whose layers, with these tensors zero, are bitwise those without the part. A test
walks all types that transformers builds."""
