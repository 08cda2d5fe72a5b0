"""Tiny GGUF files of random weights, written by the gguf package, and what its reader finds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

WIDTH, HEADS, KEY_HEADS, HEAD, HIDDEN, VOCABULARY = 64, 4, 2, 16, 96, 128

Metadata = Mapping[str, object]
Shapes = Mapping[str, tuple[int, ...]]

WAYS_BACK = {
    "attn_output.weight",
    "ffn_down.weight",
    "ffn_down_exps.weight",
    "ffn_down_shexp.weight",
    "shortconv.out_proj.weight",
}
"""Of a layer, to the residual stream."""


def write_gguf(
    file: Path,
    architecture: str = "llama",
    *,
    layers: int = 6,
    metadata: Metadata | None = None,
    extra: Shapes | Callable[[int], Shapes] | None = None,
    outside: Shapes | None = None,
    silent: Sequence[int] = (),
    types: Mapping[str, GGMLQuantizationType] | None = None,
    seed: int = 0,
    **options: object,
) -> Path:
    """A file that llama.cpp loads, if the architecture needs no more tensors than Llama's.

    Args:
        file: Where it goes.
        architecture: As general.architecture names it.
        layers: How many.
        metadata: Further keys, without the architecture's name; None as a value: leave it out.
        extra: Shapes (rows first) of further or other tensors of each layer, or of a layer by its
            index; empty: there is no such tensor.
        outside: The same of tensors outside the layers.
        silent: Layers that add nothing: what leads back to the residual stream is zero.
        types: Quantised type by the end of a tensor's name.
        seed: Of the weights.
        options: For the writer.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(file, architecture, **options)  # type: ignore[arg-type]
    settings = {**default_metadata(layers), **(metadata or {})}
    for key, value in settings.items():
        add(writer, key if key.startswith(("xielu.", "other.")) else f"{architecture}.{key}", value)
    writer.add_tokenizer_model("no_vocab")
    for name, shape in tensor_shapes(layers, extra or {}, outside or {}).items():
        data = random.normal(0, 0.3 if len(shape) > 1 else 0.1, shape).astype(np.float32)
        data += "norm" in name
        layer, _, rest = name.removeprefix("blk.").partition(".")
        if rest in WAYS_BACK and int(layer) in silent:
            data[:] = 0
        kind = next((t for end, t in (types or {}).items() if name.endswith(end)), None)
        if kind is None:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def default_metadata(layers: int) -> dict[str, object]:
    return {
        "block_count": layers,
        "context_length": 128,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEY_HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": HEAD,
        "vocab_size": VOCABULARY,
    }


def tensor_shapes(
    layers: int, extra: Shapes | Callable[[int], Shapes], outside: Shapes
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH)}
    of_layer = {
        "attn_norm.weight": (WIDTH,),
        "attn_q.weight": (HEADS * HEAD, WIDTH),
        "attn_k.weight": (KEY_HEADS * HEAD, WIDTH),
        "attn_v.weight": (KEY_HEADS * HEAD, WIDTH),
        "attn_output.weight": (WIDTH, HEADS * HEAD),
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (HIDDEN, WIDTH),
        "ffn_up.weight": (HIDDEN, WIDTH),
        "ffn_down.weight": (WIDTH, HIDDEN),
    }
    for layer in range(layers):
        own = of_layer | dict(extra(layer) if callable(extra) else extra)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    shapes |= {"output_norm.weight": (WIDTH,), **outside}
    return {name: shape for name, shape in shapes.items() if shape}


def add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    """Numbers as uint32 and float32, as converters write them."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)  # type: ignore[arg-type]


def metadata_of(file: Path) -> dict[str, object]:
    """All that the gguf package reads, with the types, without the counts of the file."""
    fields = GGUFReader(file).fields.values()
    return {
        field.name: (tuple(map(GGUFValueType, field.types)), field.contents())
        for field in fields
        if not field.name.startswith("GGUF.")
    }


def tensors_of(file: Path) -> dict[str, tuple[object, tuple[int, ...], bytes]]:
    """Type, shape and bytes by name, in the file's order."""
    return {
        tensor.name: (tensor.tensor_type, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in GGUFReader(file).tensors
    }
