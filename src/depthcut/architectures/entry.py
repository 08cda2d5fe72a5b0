"""What an entry of the table of architectures says."""

from dataclasses import dataclass

from depthcut.architectures.fields import Field, IndexMap, LeadingCount, PerLayerList
from depthcut.architectures.layouts import HAS_ATTENTION


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
    inner: str = ""
    """The decoder's model type where its own config, or an older flat one, does not say it."""
    count: tuple[str, ...] = ("num_hidden_layers",)
    """Config keys for the number of layers: the usual one, then its aliases."""
    fields: tuple[Field, ...] = ()
    """What else the config says of the layers, in the order in which it must be cut."""
    first_only: tuple[str, ...] = ()
    """How tensors begin, behind the layer's index, that lie in the first layer and stay there."""
    stored: tuple[str, ...] = ()
    """How tensors end that must lie in the checkpoint: a class would compute them from the index
    of the layer."""
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
    HAS_ATTENTION,
)
"""Fields that mean the same wherever they stand; an entry's field of the same key goes first."""
