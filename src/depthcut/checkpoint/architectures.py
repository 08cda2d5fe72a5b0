"""What depthcut knows of each model type: where its layers lie and what its config says of them.

A new architecture is one entry of ARCHITECTURES; a test walks the table. Everything here is
about the text decoder's stack of layers, counted from 0.
"""

from dataclasses import dataclass

from depthcut.checkpoint.fields import (
    DependsOnIndex,
    Field,
    IndexMap,
    LeadingCount,
    PerLayerList,
    alternating,
    sliding_from,
)
from depthcut.checkpoint.layouts import SPARSE_STEP


@dataclass(frozen=True, slots=True)
class SlicedTensor:
    """One tensor outside the stack that holds a part for each layer."""

    name: str
    """The end of its name."""
    axis: int
    """Along which the parts of equal size stand; 0 or -1."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type, as data."""

    stacks: tuple[str, ...] = ("model.layers",)
    """Torch paths of the layer list under the model that its auto class makes: other names that
    checkpoints use, or parallel lists that make up a layer together, after the first. A
    checkpoint of the bare decoder leaves the first name of a path out."""
    decoder: str = ""
    """The config's key under which the text decoder's own config lies; '': at the top. Its
    fields are those of its model_type."""
    count: tuple[str, ...] = ("num_hidden_layers",)
    """Config keys for the number of layers: the usual one, then its aliases."""
    width: tuple[str, ...] = ("hidden_size",)
    """Config keys for the width of the residual stream."""
    fields: tuple[Field, ...] = ()
    """What else the config says of the layers, in the order in which it must be cut."""
    buffers: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    """Tensors of a layer that old checkpoints carry and that are no parameters."""
    sliced: tuple[SlicedTensor, ...] = ()
    refusal: str = ""
    """Why no cut of this type can be right, in a sentence."""
    assumed: tuple[str, ...] = ()
    """What was derived rather than known, in sentences; such a cut is verified by loading."""


KNOWN_FIELDS: tuple[Field, ...] = (
    IndexMap("per_layer_config"),
    PerLayerList("layer_types"),
    PerLayerList("mlp_layer_types"),
    LeadingCount("first_k_dense_replace"),
)
"""Fields that mean the same wherever they stand; an entry's field of the same key goes first."""

_QWEN_FIELDS: tuple[Field, ...] = (
    LeadingCount("max_window_layers", default=28),
    PerLayerList("layer_types", default=sliding_from("max_window_layers", 28)),
)
_UNREAD_LAYER_TYPES = PerLayerList("layer_types")
"""The model's code ignores the list, yet transformers checks its length."""

ARCHITECTURES: dict[str, Architecture] = {
    "gemma2": Architecture(fields=(PerLayerList("layer_types", default=alternating(None, 2)),)),
    "gemma3_text": Architecture(
        fields=(
            PerLayerList(
                "layer_types",
                default=alternating("sliding_window_pattern", 6),
                sources=("sliding_window_pattern", "_sliding_window_pattern"),
            ),
        )
    ),
    "gpt2": Architecture(
        stacks=("transformer.h",),
        count=("n_layer", "num_hidden_layers"),
        width=("n_embd", "hidden_size"),
        fields=(DependsOnIndex("scale_attn_by_inverse_layer_idx"),),
        buffers=("attn.bias", "attn.masked_bias"),
    ),
    "gpt_neox": Architecture(
        stacks=("gpt_neox.layers",),
        buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    ),
    "llama": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "mistral": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "mixtral": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "opt": Architecture(stacks=("model.decoder.layers",)),
    "phi3": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "qwen2": Architecture(fields=_QWEN_FIELDS),
    "qwen3": Architecture(fields=_QWEN_FIELDS),
    "qwen3_moe": Architecture(
        fields=(
            SPARSE_STEP,
            LeadingCount("max_window_layers"),
            _UNREAD_LAYER_TYPES,
        )
    ),
}
"""By the model_type of config.json."""
