"""What was cut, what proves it, and what a model looks like before."""

from typing import Literal

from depthcut.records.base import Origin, Record
from depthcut.records.blocks import Block
from depthcut.records.facts import ModelFacts
from depthcut.records.plan import Plan


class SliceRecord(Record, frozen=True, kw_only=True):
    """Lies in a sliced checkpoint as depthcut.json: the plan that made it."""

    kind: Literal["slice"] = "slice"
    origin: Origin
    plan: Plan
    parent: ModelFacts
    """What was cut: the plan's model, or another one of its shape."""
    result: ModelFacts


class Verification(Record, frozen=True, kw_only=True):
    """What was proved of a sliced checkpoint; nothing differed."""

    kind: Literal["verification"] = "verification"
    origin: Origin
    """Its seconds are those of the comparison, without those of loading."""
    folder: str
    parent: ModelFacts
    result: ModelFacts
    tensors: int
    tensor_bytes: int
    """Compared, all of them."""
    zeroed_tensors: int = 0
    """Of these tensors, those that must be zero and are: the plan silences parts of layers."""
    config_values: int
    """Values of config.json that are what the parent's become by the cut."""
    companions: int
    """Files beside the weights that are the parent's."""
    loads: bool = False
    """Whether transformers builds the model without missing or unexpected tensors, and each
    layer as it was in the parent."""


class LayerGroup(Record, frozen=True, kw_only=True):
    """Neighbouring layers of the same tensors."""

    start: int
    stop: int
    tensors: int
    """Of each layer."""
    parameters: int
    """Of each layer."""
    size_bytes: int
    """Of each layer."""
    modules: tuple[str, ...]
    """What a layer is made of, at the top."""


class FieldValues(Record, frozen=True, kw_only=True):
    """What a config says of the layers, in one field."""

    keys: tuple[str, ...]
    runs: tuple[tuple[int, int, str], ...]
    """Layers [start, stop) and the value that they have."""


class Refusal(Record, frozen=True, kw_only=True):
    """Layers that cannot be removed one by one, and why."""

    layers: tuple[Block, ...]
    reason: str
    """Of the first of them."""


class Inspection(Record, frozen=True, kw_only=True):
    """What depthcut sees in a model without reading weights."""

    kind: Literal["inspection"] = "inspection"
    model: ModelFacts
    form: Literal["safetensors", "GGUF"]
    files: int
    assumed: tuple[str, ...]
    """What was derived of a model type that the table lacks, in sentences."""
    stacks: tuple[str, ...]
    """Where the layers lie in the names of tensors."""
    layers: tuple[LayerGroup, ...]
    other_tensors: int
    other_bytes: int
    fields: tuple[FieldValues, ...]
    refusals: tuple[Refusal, ...]
    head: Literal["own", "tied", "none"]
    """Whether the head has a tensor of its own; tied: it shares the embeddings'."""
    dtypes: tuple[tuple[str, int], ...]
    """By the bytes that they take, most first."""
    quantization: str | None
    """Method, as the config names it."""
    prediction_layers: int
    """Behind the stack, for further tokens."""
    sliced: tuple[str, ...]
    """Tensors outside the stack with a part for each layer."""
    code: tuple[str, ...]
    """Python files that the config asks for."""
