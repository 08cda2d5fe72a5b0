"""Where a repair changes weights: which layers, which of their tensors, in which order."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from depthcut.architectures.names import LayerNames
from depthcut.checkpoint.folder import Checkpoint, open_checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import ArchitectureError, SettingsError
from depthcut.model.stored_weights import find_weight
from depthcut.records import Block, Plan, layers_in_words
from depthcut.repairing.changes import Change
from depthcut.repairing.layers import Layers
from depthcut.repairing.merging import STRENGTHS, Merge, find_merge
from depthcut.repairing.methods import Method, to_states
from depthcut.repairing.norms import find_norm
from depthcut.repairing.projections import Joined, find_projections, stored_names


class Place(NamedTuple):
    """A layer whose tensors make up for a removed block."""

    block: Block
    layer: int
    depth: int
    """How many layers the untouched model has run where its state is the target."""
    changes: tuple[Change, ...]
    """Of the layer's tensors, each on what the model gives with those before."""
    stored: Mapping[str, str]
    """How the parent's files name the tensors, by their names in the model."""
    exact: bool
    """Whether a solve says what will be there: nothing that is seen follows the last one."""

    @property
    def needed(self) -> bool:
        """Whether it leads to where the block ended, and so has to help."""
        return self.depth == self.block[1]

    def passes(self, *, held: bool) -> int:
        """How many times a sequence runs through the layer, one that is held out or another."""
        if isinstance(self.changes[0], Merge):
            return held * (1 + len(STRENGTHS))
        return len(self.changes) + (held and not self.exact)


def find_places(layers: Layers, plan: Plan, method: Method) -> list[Place]:
    """The places in order: all are refused or none.

    Args:
        layers: The untouched model's; it comes from a folder.
        plan: Which layers go; it removes whole ones, and not the first.
        method: Which tensors, and whether behind the blocks too.

    Raises:
        ArchitectureError: A layer before a block adds no plain projection to the residual stream,
            the one behind reads by no plain gain, layers to be merged differ, tensors are not found
            in the checkpoint, or the method is not for this width.
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
        at = stop if method.changes == "norm" else start - 1
        if at == len(loaded.layers):
            raise ArchitectureError(
                f"the plan removes {layers_in_words([(start, stop)])}, the last ones: no layer "
                "stays behind them whose norm could make up for them; choose another --method, "
                "such as refit"
            )
        found.append(_place(layers, parent, method, (start, stop), at))
        for layer in range(stop, stop + method.behind):
            if layer not in kept or layer in before:
                break  # it makes up for the next block
            with contextlib.suppress(ArchitectureError):  # it would help, but is not needed
                found.append(_place(layers, parent, method, (start, stop), layer))
    return found


def entries_in(
    checkpoint: Checkpoint, place: Place, change: Change, layer: int
) -> dict[str, TensorEntry]:
    """Where tensors lie in a checkpoint, by their names in the model.

    Args:
        checkpoint: Whose files are searched.
        place: Of the tensors.
        change: Whose they are.
        layer: What the checkpoint counts the place's layer as.

    Raises:
        ArchitectureError: One is missing, or stored in another form.
    """
    return {
        name: find_weight(checkpoint, _name_in(checkpoint, place.stored[name], layer), own.shape)
        for name, own in change.own.items()
    }


def _place(layers: Layers, parent: Checkpoint, method: Method, block: Block, layer: int) -> Place:
    changes = tuple(_changes(layers, parent, method, block, layer))
    stored: dict[str, str] = {}
    for change in changes:
        stored |= stored_names(layers.loaded, change.own)
    behind = layer >= block[1] and method.changes != "norm"
    depth = layer + 1 if behind else block[1]
    exact = changes[-1].exact and method.aim is to_states
    place = Place(block, layer, depth, changes, stored, exact)
    for change in changes:  # refused by the name that people know, before anything is cut
        entries_in(parent, place, change, layer)
    return place


def _changes(
    layers: Layers, parent: Checkpoint, method: Method, block: Block, layer: int
) -> Iterator[Change]:
    """Behind a block both projections are solved for once: the second solve wins little there."""
    if method.changes == "norm":
        yield find_norm(layers, layer)
    elif method.changes == "all":
        yield find_merge(layers, parent, block)
    else:
        projections = find_projections(layers, layer)
        both = method.changes == "both" and len(projections) == 2
        if both:
            yield Joined((projections["attention"], projections["mlp"]))
        if layer < block[0] or not both:
            last = Joined((projections.get("mlp") or projections["attention"],))
            yield from [last] * method.rounds


def _name_in(checkpoint: Checkpoint, name: str, layer: int) -> str:
    """What a checkpoint calls a layer's tensor; its stack may lie deeper than the model's."""
    names = LayerNames(checkpoint.architecture.stacks)
    alike = [
        each
        for each in checkpoint.tensors
        if names.layer(each) == layer and names.tail(each) == names.tail(name)
    ]
    return alike[0] if len(alike) == 1 else names.renumber(name, layer)
