"""What depthcut knows of each model type: where its layers lie and what its config says of them.

A new architecture is one entry of ARCHITECTURES; a test walks the table. Everything here is
about the text decoder's stack of layers, counted from 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from depthcut.checkpoint.fields import (
    Cut,
    DependsOnIndex,
    Field,
    IndexMap,
    LeadingCount,
    PeriodWithExceptions,
    PerLayerList,
    alternating,
    sliding_from,
)
from depthcut.checkpoint.names import renumber_module_names
from depthcut.errors import ArchitectureError, CheckpointError, PlanError, nearest


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model type, as data."""

    stack: str = "model.layers"
    """Torch path of the layer list under the causal LM; a checkpoint of the bare decoder leaves
    the first name out."""
    count: tuple[str, ...] = ("num_hidden_layers",)
    """Config keys for the number of layers: the usual one, then its aliases."""
    width: tuple[str, ...] = ("hidden_size",)
    """Config keys for the width of the residual stream."""
    fields: tuple[Field, ...] = ()
    """What else the config says of the layers, in the order in which it must be cut."""
    buffers: tuple[str, ...] = ("self_attn.rotary_emb.inv_freq",)
    """Tensors of a layer that old checkpoints carry and that are no parameters."""


_EVERYWHERE: tuple[Field, ...] = (IndexMap("per_layer_config"),)
"""Fields that transformers honours for every model type."""

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
        stack="transformer.h",
        count=("n_layer", "num_hidden_layers"),
        width=("n_embd", "hidden_size"),
        fields=(DependsOnIndex("scale_attn_by_inverse_layer_idx"),),
        buffers=("attn.bias", "attn.masked_bias"),
    ),
    "gpt_neox": Architecture(
        stack="gpt_neox.layers",
        buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
    ),
    "llama": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "mistral": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "mixtral": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "opt": Architecture(stack="model.decoder.layers"),
    "phi3": Architecture(fields=(_UNREAD_LAYER_TYPES,)),
    "qwen2": Architecture(fields=_QWEN_FIELDS),
    "qwen3": Architecture(fields=_QWEN_FIELDS),
    "qwen3_moe": Architecture(
        fields=(
            PeriodWithExceptions(period="decoder_sparse_step", exceptions="mlp_only_layers"),
            LeadingCount("max_window_layers"),
            _UNREAD_LAYER_TYPES,
        )
    ),
}
"""By the model_type of config.json."""

_NOT_PER_LAYER = frozenset(
    {
        "architectures",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "eos_token_id",
        "forced_decoder_ids",
        "keys_to_ignore_at_inference",
        "pad_token_id",
        "suppress_tokens",
    }
)
"""Lists of a config that may happen to be as long as the stack."""


def find_architecture(config: Mapping[str, object]) -> Architecture:
    """The table's entry for a config.

    Raises:
        ArchitectureError: The config has no model_type, or one that the table lacks.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ArchitectureError(
            "config.json has no model_type: depthcut cannot tell where the layers are"
        )
    if model_type not in ARCHITECTURES:
        raise ArchitectureError(
            f"model type {model_type!r} is not supported{nearest(model_type, ARCHITECTURES)}; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[model_type]


def layer_count(config: Mapping[str, object]) -> int:
    """How many layers a config says it has.

    Raises:
        ArchitectureError: The model type is not supported.
        CheckpointError: The config does not say, or says two different numbers.
    """
    return _number(config, find_architecture(config).count)


def hidden_size(config: Mapping[str, object]) -> int:
    """The width of the residual stream.

    Raises:
        ArchitectureError: The model type is not supported.
        CheckpointError: The config does not say, or says two different numbers.
    """
    return _number(config, find_architecture(config).width)


def cut_config(config: Mapping[str, object], kept: Sequence[int]) -> dict[str, object]:
    """The config of the model that is left with the layers `kept` (ascending, from 0).

    Nothing is changed in place; what does not speak of layers is carried as it is.

    Raises:
        ArchitectureError: The model type is not supported, or its config cannot say this cut;
            the message names the field and, where there is one, the nearest block that works.
        CheckpointError: The config contradicts itself.
        PlanError: `kept` is empty, not ascending or out of range.
    """
    architecture = find_architecture(config)
    layers = layer_count(config)
    cut = Cut(layers, tuple(kept))
    if not cut.kept or list(cut.kept) != sorted(set(cut.kept) & set(range(layers))):
        raise PlanError(
            f"the kept layers {list(kept)} must be ascending, at least one, out of 0–{layers - 1}"
        )
    try:
        return _cut(config, architecture, cut)
    except ArchitectureError as error:
        raise ArchitectureError(f"{error}{_nearby(config, architecture, cut)}") from error


def _cut(config: Mapping[str, object], architecture: Architecture, cut: Cut) -> dict[str, object]:
    fields = _EVERYWHERE + architecture.fields
    result = dict(config)
    for field in fields:
        result = field.cut(config, result, cut)
    _refuse_unknown_lists(config, fields, cut)
    for key, value in result.items():
        result[key] = renumber_module_names(value, architecture.stack, cut)
    for key in architecture.count:
        if key in result:
            result[key] = len(cut.kept)
    return result


def _refuse_unknown_lists(config: Mapping[str, object], fields: Sequence[Field], cut: Cut) -> None:
    known = _NOT_PER_LAYER.union(*(field.keys for field in fields))
    for key, value in config.items():
        if isinstance(value, list) and len(value) == cut.layers and key not in known:
            raise ArchitectureError(
                f"config.json: the list {key} has as many entries as there are layers "
                f"({cut.layers}), and depthcut does not know whether it speaks of them; "
                "remove it from config.json if the model does not need it"
            )


def _number(config: Mapping[str, object], keys: Sequence[str]) -> int:
    values = {key: config[key] for key in keys if key in config}
    numbers = {value for value in values.values() if type(value) is int and value > 0}
    if len(numbers) != 1 or len(set(map(str, values.values()))) != 1:
        found = ", ".join(f"{key} {value!r}" for key, value in values.items()) or "nothing"
        raise CheckpointError(
            f"config.json must give {keys[0]} as one positive number, found {found}; correct it"
        )
    return numbers.pop()


def _nearby(config: Mapping[str, object], architecture: Architecture, cut: Cut) -> str:
    gone = sorted(set(range(cut.layers)) - set(cut.kept))
    if not gone:
        return ""
    starts = range(cut.layers - len(gone) + 1)
    for start in sorted(starts, key=lambda start: (abs(start - gone[0]), start)):
        stop = start + len(gone)
        kept = (*range(start), *range(stop, cut.layers))
        try:
            _cut(config, architecture, Cut(cut.layers, kept))
        except ArchitectureError:
            continue
        block = f"layers {start}–{stop - 1}" if len(gone) > 1 else f"layer {start}"
        return f"; the nearest removal that works: {block}"
    return ""
