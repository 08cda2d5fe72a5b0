"""Where a repair solves: which layers, which of their projections, in which order."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from depthcut.architectures.names import LayerNames
from depthcut.checkpoint.folder import Checkpoint, open_checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import ArchitectureError, SettingsError
from depthcut.model.stored_weights import find_weight
from depthcut.records import Block, LayerPart, Plan
from depthcut.repairing.layers import Layers
from depthcut.repairing.methods import Method
from depthcut.repairing.projections import Joined, Projection, find_projections, stored_names


class Place(NamedTuple):
    """A layer whose projections make up for a removed block."""

    block: Block
    layer: int
    depth: int
    """How many layers the untouched model has run where its state is the target."""
    solves: tuple[Joined, ...]
    """What is solved for, each on what the model gives with those before."""
    stored: Mapping[str, str]
    """How the parent's files name the tensors, by their names in the model."""

    @property
    def exact(self) -> bool:
        """Whether a solve says what the layer will give: nothing in it follows the last one."""
        return len(self.solves[-1].parts) == 1 and self.solves[-1].parts[0].part == "mlp"

    @property
    def before(self) -> bool:
        """Whether the layer lies before its block, not behind it."""
        return self.layer < self.block[0]


def find_places(layers: Layers, plan: Plan, method: Method) -> list[Place]:
    """The places in order: all are refused or none.

    Args:
        layers: The untouched model's; it comes from a folder.
        plan: Which layers go; it removes whole ones, and not the first.
        method: Which projections, and whether behind the blocks too.

    Raises:
        ArchitectureError: A layer before a block adds no plain projection to the residual stream,
            its tensors are not found in the checkpoint, or the method is not for this width.
        SettingsError: A quantised model, or one without a folder.
    """
    loaded = layers.loaded
    if getattr(loaded.model, "is_quantized", False):
        raise SettingsError(
            "quantised weights cannot be repaired: give the checkpoint before quantisation, "
            "without --load-in-4bit"
        )
    if loaded.folder is None:
        raise SettingsError("a model in memory cannot be repaired: give its checkpoint's folder")
    if method.refuse_width is not None:
        method.refuse_width(loaded.facts.hidden_size)
    parent, kept = open_checkpoint(loaded.folder), plan.kept_layers
    before = {start - 1 for start, _ in plan.removed}
    found = []
    for start, stop in plan.removed:
        found.append(_place(layers, parent, method, (start, stop), start - 1))
        for layer in range(stop, stop + method.behind):
            if layer not in kept or layer in before:
                break  # it makes up for the next block
            with contextlib.suppress(ArchitectureError):  # it would help, but is not needed
                found.append(_place(layers, parent, method, (start, stop), layer))
    return found


def entries_in(
    checkpoint: Checkpoint, place: Place, joined: Joined, layer: int
) -> dict[str, TensorEntry]:
    """Where tensors lie in a checkpoint, by their names in the model.

    Args:
        checkpoint: Whose files are searched.
        place: Of the tensors.
        joined: Whose they are.
        layer: What the checkpoint counts the place's layer as.

    Raises:
        ArchitectureError: One is missing, or stored in another form.
    """
    return {
        name: find_weight(checkpoint, _name_in(checkpoint, place.stored[name], layer), own.shape)
        for name, own in joined.own.items()
    }


def _place(layers: Layers, parent: Checkpoint, method: Method, block: Block, layer: int) -> Place:
    projections = find_projections(layers, layer)
    stored = {
        name: its
        for projection in projections.values()
        for name, its in stored_names(layers.loaded, projection).items()
    }
    place = Place(
        block=block,
        layer=layer,
        depth=block[1] if layer < block[0] else layer + 1,
        solves=tuple(_solves(projections, method, before=layer < block[0])),
        stored=stored,
    )
    for joined in place.solves:  # refused by the name that people know, before anything is cut
        entries_in(parent, place, joined, layer)
    return place


def _solves(
    projections: Mapping[LayerPart, Projection], method: Method, *, before: bool
) -> Iterator[Joined]:
    """Behind a block both projections are solved for once: the second solve wins little there."""
    both = method.attention and len(projections) == 2
    if both:
        yield Joined((projections["attention"], projections["mlp"]))
    if before or not both:
        yield Joined((projections.get("mlp") or projections["attention"],))


def _name_in(checkpoint: Checkpoint, name: str, layer: int) -> str:
    """What a checkpoint calls a layer's tensor; its stack may lie deeper than the model's."""
    names = LayerNames(checkpoint.architecture.stacks)
    alike = [
        each
        for each in checkpoint.tensors
        if names.layer(each) == layer and names.tail(each) == names.tail(name)
    ]
    return alike[0] if len(alike) == 1 else names.renumber(name, layer)
