"""A tiny Llama as a GGUF file, from a model in memory."""

from pathlib import Path

import gguf
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

PLAIN = {
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path, *, pre: str = "default"
) -> Path:
    """Write float32 weights in llama.cpp's layout, without a head: it is tied."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [f"unused{number}" for number in range(config.vocab_size)]
    for token, number in tokenizer.get_vocab().items():
        tokens[number] = token
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_types([3 if number in special else 1 for number in range(len(tokens))])
    tokens[-1] = "ÿÿ"  # a byte that UTF-8 never has: llama.cpp's form wants some merge
    writer.add_token_list(tokens)
    writer.add_token_merges(["ÿ ÿ"])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)

    def add(name: str, tensor: Tensor) -> None:
        writer.add_tensor(name, np.ascontiguousarray(tensor.detach().numpy()))

    add("token_embd.weight", model.model.embed_tokens.weight)
    add("output_norm.weight", model.model.norm.weight)
    for number, layer in enumerate(model.model.layers):
        for ours, theirs in PLAIN.items():
            add(f"blk.{number}.{theirs}.weight", layer.get_submodule(ours).weight)
        for name, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            weight = layer.get_submodule(f"self_attn.{name}_proj").weight
            halves = weight.reshape(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2)
            add(f"blk.{number}.attn_{name}.weight", halves.reshape(weight.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
