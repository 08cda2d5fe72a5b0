"""Checkpoints of a few kilobytes that mutators start from, written without any library."""

import json
import struct
from collections.abc import Iterable, Mapping
from functools import cache
from random import Random

from depthcut.architectures.configs import fields_of
from depthcut.architectures.table import ARCHITECTURES

LAYERS, WIDTH = 6, 4
Files = dict[str, bytes]
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]

_BYTES = {"F32": 4, "BF16": 2, "U8": 1, "F16": 2, "F8_E4M3": 1, "I64": 8}
_CARD = (
    b"---\nlicense: apache-2.0\ntags: [a, b]\nlanguage:\n- en\nbase_model: x/y\n---\n\n# Title\n"
)
_FULL, _SLIDING = "full_attention", "sliding_attention"


@cache
def base(name: str) -> Files:
    """The files of a base: one of BASES, or `type:MODEL_TYPE`."""
    if name.startswith("type:"):
        return _of_type(name.removeprefix("type:"))
    return BASES[name]()


def field_keys(model_type: str) -> list[str]:
    """What the table knows of a type's config, its count of layers included."""
    architecture = ARCHITECTURES[model_type]
    config = {"model_type": model_type}
    if architecture.decoder:
        config |= {architecture.decoder: {}}
    keys = [key for field in fields_of(config, architecture) for key in field.keys]
    common = ("sliding_window", "use_sliding_window", "vocab_size", "tie_word_embeddings")
    return [*keys, *architecture.count[:1], *common, "quantization_config", "hidden_size"]


def safetensors(tensors: Tensors, *, metadata: Mapping[str, str] | None = None) -> bytes:
    """A file of random bytes, the same on every call."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, (dtype, shape) in tensors.items():
        size = _BYTES[dtype]
        for dimension in shape:
            size *= dimension
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + size],
        }
        data += Random(name).randbytes(size)
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def _layers(stack: str, *, layers: int = LAYERS) -> Tensors:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in range(layers):
        tensors[f"{stack}.{layer}.attn.weight"] = ("F32", (2, WIDTH))
        tensors[f"{stack}.{layer}.input_norm.weight"] = ("BF16", (WIDTH,))
    return tensors


def _folder(config: Mapping[str, object], tensors: Tensors, **others: bytes) -> Files:
    outside: Tensors = {"embed.weight": ("F16", (8, WIDTH)), "norm.weight": ("BF16", (WIDTH,))}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors({**outside, **tensors}, metadata={"format": "pt"}),
        "README.md": _CARD,
        "tokenizer.json": b"{}",
        **{name.replace("__", "."): content for name, content in others.items()},
    }


def _of_type(model_type: str) -> Files:
    architecture = ARCHITECTURES[model_type]
    decoder: dict[str, object] = dict.fromkeys(architecture.count[:1], LAYERS)
    decoder["hidden_size"] = WIDTH
    config: dict[str, object] = {"model_type": model_type, **decoder}
    if architecture.decoder:
        config = {"model_type": model_type, architecture.decoder: decoder}
    tensors = dict(_layers(architecture.stacks[0]))
    for sliced in architecture.sliced:
        tensors[f"model.{sliced.name}"] = ("F32", (LAYERS, 2) if sliced.axis == 0 else (2, LAYERS))
    for name in architecture.stored:
        tensors[f"model.{name}"] = ("F32", (2,))
    for name in architecture.first_only:
        tensors[f"{architecture.stacks[0]}.0.{name}weight"] = ("F32", (2,))
    return _folder(config, tensors)


def _llama() -> Files:
    names = [f"model.layers.{layer}.attn" for layer in range(LAYERS)]
    config = {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "eos_token_id": [1, 2],
        "quantization_config": {
            "modules_to_not_convert": [names[0], names[4], "lm_head"],
            "dynamic": {"-:.*layers\\.3\\..*": {}, "+:.*layers\\.(1|2)\\..*": {"bits": 4}},
        },
        "per_layer_config": {"0": {"a": 1}, "3": {"a": 2}},
        "layer_types": [_FULL, _SLIDING] * 3,
    }
    settings = json.dumps({"bits": 4, "modules": names, "pattern": {names[2]: 8}}).encode()
    template = {"additional_chat_templates/tool.jinja": b"{{ messages }}"}
    return _folder(config, _layers("model.layers"), quantize_config__json=settings) | template


def _sharded() -> Files:
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "mlp_only_layers": [3],
        "decoder_sparse_step": 2,
    }
    tensors = {**_layers("model.layers"), "lm_head.weight": ("U8", (3, 0)), "b": ("I64", ())}
    names, files, weight_map = list(tensors), _folder(config, {}), {}
    del files["model.safetensors"]
    for number, part in enumerate((names[:5], names[9:], names[5:9]), start=1):
        file = f"model-{number:05d}-of-00003.safetensors"
        files[file] = safetensors({name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 9, "total_parameters": 9}, "weight_map": weight_map}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


def _nested() -> Files:
    text = {
        "model_type": "gemma3_text",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "sliding_window": 8,
        "layer_types": [_SLIDING, _SLIDING, _FULL] * 2,
    }
    vision = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "model_type": "siglip"}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": vision}
    towers = _layers("vision_tower.encoder.layers", layers=2)
    return _folder(config, {**_layers("language_model.model.layers"), **towers})


def _shared_cache() -> Files:
    config = {
        "model_type": "gemma3n_text",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "num_kv_shared_layers": 2,
        "intermediate_size": [8] * LAYERS,
        "activation_sparsity_pattern": [0.95] * 3 + [0.0] * 3,
        "layer_types": [_SLIDING, _FULL] * 3,
    }
    per_layer: Tensors = {
        "model.embed_tokens_per_layer.weight": ("F32", (3, 2 * LAYERS)),
        "model.per_layer_model_projection.weight": ("BF16", (2 * LAYERS, 2)),
    }
    return _folder(config, {**_layers("model.layers"), **per_layer})


def _predicting() -> Files:
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": LAYERS,
        "hidden_size": WIDTH,
        "first_k_dense_replace": 2,
        "num_nextn_predict_layers": 1,
        "quantization_config": {"quant_method": "fp8", "ignored_layers": ["model.layers.5.attn"]},
    }
    return _folder(config, _layers("model.layers", layers=LAYERS + 1))


def _unknown() -> Files:
    config = {
        "model_type": "mystery",
        "n_layers": LAYERS,
        "dim": WIDTH,
        "kinds": ["a", "b", "c"] * 2,
        "by_layer": {"0": 1, "5": 2},
    }
    return _folder(config, _layers("decoder.blocks"))


def _adapter() -> Files:
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for layer in (0, 2, 3, 5):
        for part, shape in (("lora_A", (2, WIDTH)), ("lora_B", (WIDTH, 2))):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.{part}.weight"
            tensors[name] = ("F32", shape)
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "layers_to_transform": [0, 2, 3, 5],
        "layers_pattern": "layers",
        "rank_pattern": {"model.layers.3.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.5.self_attn.q_proj": 8},
        "base_model_name_or_path": "x/y",
    }
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": safetensors(tensors, metadata={"format": "pt"}),
        "README.md": _CARD,
    }


def _gguf() -> Files:
    entries = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        _entry("llama.block_count", 4, "I", LAYERS),
        _entry("llama.embedding_length", 4, "I", WIDTH),
        _entry("general.alignment", 4, "I", 32),
        _array("llama.attention.head_count_kv", 5, "i", range(1, 1 + LAYERS)),
        _array("llama.feed_forward_length", 4, "I", [8] * LAYERS),
        _text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(_text, "abc")),
    ]
    shapes = {"token_embd.weight": (WIDTH, 3), "output_norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.attn_q.weight": (WIDTH, 2), f"blk.{layer}.attn_norm.weight": (3,)}
    infos, data = [], b""
    for name, shape in shapes.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos.append(_text(name) + dimensions + struct.pack("<IQ", 0, len(data)))
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        data += Random(name).randbytes(size) + bytes(-size % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(entries))
    head += b"".join([*entries, *infos])
    return {"model.gguf": head + bytes(-len(head) % 32) + data}


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _entry(key: str, kind: int, form: str, value: float) -> bytes:
    return _text(key) + struct.pack(f"<I{form}", kind, value)


def _array(key: str, kind: int, form: str, values: Iterable[int]) -> bytes:
    numbers = list(values)
    packed = struct.pack(f"<{len(numbers)}{form}", *numbers)
    return _text(key) + struct.pack("<IIQ", 9, kind, len(numbers)) + packed


BASES = {
    "llama": _llama,
    "sharded": _sharded,
    "nested": _nested,
    "shared-cache": _shared_cache,
    "predicting": _predicting,
    "unknown": _unknown,
    "adapter": _adapter,
    "gguf": _gguf,
}
TYPES = tuple(f"type:{name}" for name in ARCHITECTURES)
FOLDERS = ("llama", "sharded", "nested", "shared-cache", "predicting", "unknown")
