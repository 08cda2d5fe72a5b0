"""Tiny random models of every supported type, and a tokenizer to go with them.

Six layers that differ from each other, float32, a few hundred kilobytes. Sliding windows are
8 tokens wide and expert or attention patterns uneven, so that a layer in the wrong place shows.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

END, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END, PAD, TURN_START, TURN_END)
VOCABULARY = 264
"""256 bytes, the special tokens, and some room."""
WINDOW = 8
"""Tokens of a sliding window."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_COMMON: Mapping[str, object] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 257,
}
_GROUPED: Mapping[str, object] = {**_COMMON, "num_key_value_heads": 2, "head_dim": 12}
_NO_HEAD_DIM: Mapping[str, object] = {**_COMMON, "num_key_value_heads": 2}
_SLIDING: Mapping[str, object] = {"sliding_window": WINDOW}
_HALF_SLIDING: Mapping[str, object] = {
    **_SLIDING,
    "use_sliding_window": True,
    "max_window_layers": 3,
}

TINY_TYPES: Mapping[str, Mapping[str, object]] = {
    "gemma2": {**_GROUPED, **_SLIDING, "query_pre_attn_scalar": 12},
    "gemma3_text": {
        **_GROUPED,
        **_SLIDING,
        "query_pre_attn_scalar": 12,
        "sliding_window_pattern": 3,
    },
    "gpt2": {**_COMMON, "n_inner": 64},
    "gpt_neox": _COMMON,
    "llama": _GROUPED,
    "mistral": {**_GROUPED, **_SLIDING},
    "mixtral": {**_GROUPED, **_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "phi3": {**_NO_HEAD_DIM, **_SLIDING},
    "qwen2": {**_NO_HEAD_DIM, **_HALF_SLIDING},
    "qwen3": {**_GROUPED, **_HALF_SLIDING},
    "qwen3_moe": {
        **_GROUPED,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
    },
}
"""By model type: the configuration."""


def build_tiny(
    model_type: str, *, layers: int = 6, tied: bool | None = None, **changes: object
) -> PreTrainedModel:
    """A random model in evaluation mode: seed 0, float32, the same on every call.

    Args:
        model_type: A key of TINY_TYPES.
        layers: How many layers.
        tied: Whether embeddings and head share their weights; None: as the type does by default.
        changes: Further keys of the configuration.
    """
    settings = {**TINY_TYPES[model_type], "num_hidden_layers": layers, **changes}
    if tied is not None:
        settings["tie_word_embeddings"] = tied
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() >= 2:  # the usual 0.02 is too small to tell layers apart
                    torch.nn.init.normal_(parameter, std=0.08)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


def save_tiny(model: PreTrainedModel, folder: Path, *, max_shard_size: int | str = "5GB") -> Path:
    """Save as save_pretrained does (200_000 as `max_shard_size` gives several files)."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def tiny_tokenizer(folder: Path, *, chat_template: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes, saved in `folder` so that AutoTokenizer loads it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(
        models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[])
    )
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer
