"""A model in, what depthcut sees of it and what could be cut out: headers and config only."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from depthcut.architectures.configs import fields_of, with_surroundings
from depthcut.architectures.fields import (
    DependsOnIndex,
    EndStays,
    Field,
    Reference,
    Requirement,
    ScaledByDepth,
)
from depthcut.architectures.names import LayerNames
from depthcut.architectures.values import Config, value_at
from depthcut.checkpoint.companions import companions
from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.errors import ArchitectureError
from depthcut.gguf.file import read_gguf
from depthcut.gguf.layers import gguf_fields_of
from depthcut.gguf.model import gguf_facts, gguf_model
from depthcut.records import FieldValues, Inspection, LayerGroup, Refusal, merged
from depthcut.slicing.gguf import cut_changes
from depthcut.slicing.layout import refuse_computed

_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|embed_out|output|output_layer|head|score)\.(?:q?weight)")
_NO_VALUES = (DependsOnIndex, EndStays, Requirement, ScaledByDepth)
"""Fields that say nothing else than what cannot be cut, or a number of the whole model."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """What counts of a tensor, in either form of file."""

    layer: int | None
    tail: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size_bytes: int


def inspect_checkpoint(folder: Path, *, source: str) -> Inspection:
    """What depthcut sees in a checkpoint folder.

    Args:
        folder: A checkpoint folder.
        source: How the user named the model.

    Raises:
        CheckpointError: The folder is broken, or config and tensors disagree.
        ArchitectureError: The stack of layers cannot be found.
    """
    checkpoint = open_checkpoint(folder)
    facts = model_facts(checkpoint, source=source)
    architecture, config = checkpoint.architecture, checkpoint.config
    names = LayerNames(architecture.stacks)
    tensors = [
        _Tensor(names.layer(e.name), names.tail(e.name), e.dtype, e.shape, e.elements, e.size_bytes)
        for e in checkpoint.tensors.values()
    ]
    stacks = {
        name[: -len(f"{names.layer(name)}.{names.tail(name)}") - 1]
        for name in checkpoint.tensors
        if names.layer(name) is not None
    }
    outside = [name for name in checkpoint.tensors if names.layer(name) is None]
    own = any(_HEAD.fullmatch(name) for name in outside)
    others = [each for each in tensors if not _is_inside(each, facts.layers)]

    def cut(kept: tuple[int, ...]) -> None:
        refuse_computed(checkpoint)
        checkpoint.cut_config(kept)

    return Inspection(
        model=facts,
        form="safetensors",
        files=len(checkpoint.shards),
        assumed=architecture.assumed,
        stacks=tuple(sorted(stacks)),
        layers=_layer_groups(tensors, facts.layers),
        other_tensors=len(others),
        other_bytes=sum(each.size_bytes for each in others),
        fields=tuple(
            _field_values(
                fields_of(config, architecture),
                with_surroundings(config, architecture),
                facts.layers,
            )
        ),
        refusals=_refusals(facts.layers, cut),
        head="own" if own else "tied" if _is_tied(checkpoint) else "none",
        dtypes=_dtypes(tensors),
        quantization=_quantization(config) or _quantization(checkpoint.decoder_config),
        prediction_layers=len(checkpoint.extra_layers),
        sliced=tuple(
            name for name in outside if name.endswith(tuple(s.name for s in architecture.sliced))
        ),
        code=tuple(str(path) for path in companions(folder, config) if path.suffix == ".py"),
    )


def inspect_gguf(file: Path, *, source: str) -> Inspection:
    """What depthcut sees in a GGUF file.

    Raises:
        CheckpointError: The file is damaged, or metadata and tensors disagree.
        ArchitectureError: Its architecture is unknown or has no layers to cut.
    """
    model = gguf_model(read_gguf(file))
    facts = gguf_facts(file, source=source)
    names = LayerNames(("blk",))
    tensors = [
        _Tensor(names.layer(t.name), names.tail(t.name), t.type_name, t.shape, t.elements,
                t.size_bytes)
        for t in model.gguf.tensors
    ]  # fmt: skip
    others = [each for each in tensors if not _is_inside(each, facts.layers)]
    own = any(tensor.name == "output.weight" for tensor in model.gguf.tensors)
    return Inspection(
        model=facts,
        form="GGUF",
        files=len({tensor.file for tensor in model.gguf.tensors}),
        assumed=(),
        stacks=("blk",),
        layers=_layer_groups(tensors, facts.layers),
        other_tensors=len(others),
        other_bytes=sum(each.size_bytes for each in others),
        fields=tuple(
            _field_values(gguf_fields_of(model.name), model.config, facts.layers + model.extra)
        ),
        refusals=_refusals(facts.layers, lambda kept: cut_changes(model, kept)),
        head="own" if own else "tied",
        dtypes=_dtypes(tensors),
        quantization=None,
        prediction_layers=model.extra,
        sliced=(),
        code=(),
    )


def _is_inside(tensor: _Tensor, layers: int) -> bool:
    return tensor.layer is not None and tensor.layer < layers


def _layer_groups(tensors: Iterable[_Tensor], layers: int) -> tuple[LayerGroup, ...]:
    """Runs of layers whose tensors have the same names, dtypes and shapes."""
    of_layer: list[list[_Tensor]] = [[] for _ in range(layers)]
    for tensor in tensors:
        if tensor.layer is not None and tensor.layer < layers:
            of_layer[tensor.layer].append(tensor)

    def signature(layer: int) -> list[tuple[str, str, tuple[int, ...]]]:
        return sorted((each.tail, each.dtype, each.shape) for each in of_layer[layer])

    groups = []
    for _, run in groupby(range(layers), signature):
        members = list(run)
        first = of_layer[members[0]]
        groups.append(
            LayerGroup(
                start=members[0],
                stop=members[-1] + 1,
                tensors=len(first),
                parameters=sum(each.elements for each in first),
                size_bytes=sum(each.size_bytes for each in first),
                modules=tuple(dict.fromkeys(_module(each.tail) for each in first)),
            )
        )
    return tuple(groups)


def _module(tail: str) -> str:
    """The module at the top of a layer that a tensor belongs to; its experts apart."""
    parts = tail.split(".")
    if "experts" in parts:
        return ".".join(parts[: parts.index("experts") + 1])
    return parts[0]


def _field_values(fields: Iterable[Field], config: Config, layers: int) -> Iterator[FieldValues]:
    for field in fields:
        if isinstance(field, _NO_VALUES) or not field.keys:
            continue
        try:
            values = field.read(config, layers)
        except ArchitectureError:  # it is among the refusals
            continue
        given = tuple(key for key in field.keys if value_at(config, key) is not None)
        texts = [_text(value) for value in values or ()]
        if texts and (given or len(set(texts)) > 1):
            yield FieldValues(keys=given or field.keys[:1], runs=tuple(_runs(texts)))


def _runs(texts: Iterable[str]) -> Iterator[tuple[int, int, str]]:
    start = 0
    for text, run in groupby(texts):
        stop = start + sum(1 for _ in run)
        yield start, stop, text
        start = stop


def _text(value: object) -> str:
    if isinstance(value, Reference):
        return f"layer {value.layer}"
    if isinstance(value, tuple) and len(value) == 2 and type(value[0]) is bool:  # an IndexMap's
        return _text(value[1]) if value[0] else "-"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _refusals(layers: int, cut: Callable[[tuple[int, ...]], object]) -> tuple[Refusal, ...]:
    """Which layers cannot be removed alone; those for the same reason together."""
    found: dict[str, list[int]] = {}
    reasons: dict[str, list[str]] = {}
    for layer in range(layers if layers > 1 else 0):
        try:
            cut((*range(layer), *range(layer + 1, layers)))
        except ArchitectureError as error:
            reason = str(error).partition("; the nearest removal that works")[0]
            kind = re.sub(r"\[.*\]|[0-9]+", "", reason)
            reasons.setdefault(kind, []).append(reason)
            found.setdefault(kind, []).append(layer)
    return tuple(
        Refusal(
            layers=merged(which),
            reason=reasons[kind][0]
            + (", and alike for the others" if len(set(reasons[kind])) > 1 else ""),
        )
        for kind, which in found.items()
    )


def _dtypes(tensors: Iterable[_Tensor]) -> tuple[tuple[str, int], ...]:
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    return tuple(sizes.most_common())


def _quantization(config: Config) -> str | None:
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    method, bits = settings.get("quant_method", "a method without a name"), settings.get("bits")
    return f"{method}, {bits} bits" if type(bits) is int else str(method)


def _is_tied(checkpoint: Checkpoint) -> bool:
    """Whether the class shares the embeddings with the head: unless the config denies it."""
    configs = (checkpoint.config, checkpoint.decoder_config)
    return all(config.get("tie_word_embeddings") is not False for config in configs)
