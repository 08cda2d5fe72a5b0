"""What the new checkpoint holds: which tensors, under which names, in which files."""

from collections.abc import Iterable, Iterator, Sequence

from depthcut.architectures.fields import Cut
from depthcut.architectures.names import LayerNames
from depthcut.architectures.sublayers import ended_part
from depthcut.architectures.table import Architecture
from depthcut.checkpoint.folder import SINGLE_FILE, Checkpoint
from depthcut.checkpoint.headers import Header, TensorEntry
from depthcut.checkpoint.pieces import Piece, sliced_piece
from depthcut.errors import ArchitectureError, PlanError
from depthcut.records import ModelFacts, Plan


def check_plan(plan: Plan, facts: ModelFacts, source: str, *, other_model: bool = False) -> None:
    """Refuse a plan that is not for this model, or that changes nothing.

    Args:
        plan: What shall be done.
        facts: What the checkpoint is.
        source: The checkpoint, as the user knows it.
        other_model: Whether the plan may come from another model with as many layers.

    Raises:
        PlanError: The plan is for another model, names layers that are not there or other
            models' layers, or keeps all or none.
    """
    named = (plan.model.source, *(each.model or "" for each in plan.slices))
    if unreadable := next((name for name in named if not name.isprintable()), None):
        raise PlanError(f"the plan names a model {unreadable!r}: it must be text of one line")
    if len(plan.model.layer_parameters) != plan.model.layers:
        raise PlanError(
            f"the plan gives {plan.model.source} {plan.model.layers} layers and the parameters of "
            f"{len(plan.model.layer_parameters)}: the plan was changed; make it again"
        )
    if other_model:
        if (plan.model.layers, plan.model.hidden_size) != (facts.layers, facts.hidden_size):
            raise PlanError(
                f"the plan was made for {plan.model.source} ({plan.model.layers} layers of width "
                f"{plan.model.hidden_size}), {source} has {facts.layers} of width "
                f"{facts.hidden_size}: make a plan for it"
            )
    elif plan.model.digest == facts.digest:
        if (plan.model.layers, plan.model.parameters) != (facts.layers, facts.parameters):
            raise PlanError(
                f"the plan gives {source} {plan.model.layers} layers and "
                f"{plan.model.parameters:,} parameters, it has {facts.layers} and "
                f"{facts.parameters:,}: the plan was changed; make it again"
            )
    else:
        raise PlanError(
            f"the plan was made for {plan.model.source} (digest {plan.model.digest[:12]}, "
            f"{plan.model.layers} layers), {source} is another model (digest {facts.digest[:12]}, "
            f"{facts.layers} layers): make a plan for it, give the model the plan was made for, or "
            "say --other-model if this is a copy of it with other weights"
        )
    for each in plan.slices:
        if not 0 <= each.start < each.stop <= facts.layers:
            raise PlanError(
                f"the plan takes layers [{each.start}, {each.stop}): they must lie within the "
                f"model's layers 0–{facts.layers - 1}; correct or remake the plan"
            )
        if each.model not in (None, plan.model.source):
            raise PlanError(
                f"the plan takes layers of {each.model} beside those of {plan.model.source}: only "
                "one model's layers can be arranged; leave the others out"
            )
    _check_zeroed(plan)
    if not plan.slices:
        raise PlanError(f"the plan removes all {facts.layers} layers: keep at least one")
    if plan.kept_layers == tuple(range(facts.layers)) and not plan.zeroed:
        raise PlanError(f"the plan removes none of {facts.layers} layers: nothing to slice")


def _check_zeroed(plan: Plan) -> None:
    kept, places = set(plan.kept_layers), [(each.layer, each.part) for each in plan.zeroed]
    for place in places:
        if place[0] not in kept:
            raise PlanError(
                f"the plan zeroes the {place[1]} of layer {place[0]}, which it does not keep; "
                "correct or remake the plan"
            )
        if sum(other[0] == place[0] for other in places) > 1:
            raise PlanError(
                f"the plan zeroes layer {place[0]} twice: both parts of a layer go with the layer; "
                "correct or remake the plan"
            )


def cut_of(plan: Plan, checkpoint: Checkpoint, layers: int) -> Cut:
    """What a plan does to a checkpoint of so many layers."""
    return Cut(
        layers,
        plan.kept_layers,
        len(checkpoint.extra_layers),
        frozenset((each.layer, each.part) for each in plan.zeroed),
    )


def refuse_computed(checkpoint: Checkpoint) -> None:
    """Raise ArchitectureError where the model would compute by index what it may also store."""
    for name in checkpoint.architecture.stored:
        if not any(tensor.endswith(name) for tensor in checkpoint.tensors):
            raise ArchitectureError(
                f"{checkpoint.folder} does not store {name}, which the model then computes from "
                "the index of each layer: save it once with transformers' save_pretrained"
            )


def kept_pieces(
    tensors: Iterable[TensorEntry], architecture: Architecture, cut: Cut
) -> Iterator[Piece]:
    """The new checkpoint's tensors, in the order of their bytes so that neighbours can be copied
    at once; further copies of a repeated layer come after all others."""
    names = LayerNames(architecture.stacks)
    new_indices: dict[int, list[int]] = {}
    for new, old in enumerate(cut.kept):
        new_indices.setdefault(old, []).append(new)
    repeated = []
    for entry in tensors:
        layer = names.layer(entry.name)
        if layer == 0 and names.tail(entry.name).startswith(architecture.first_only or ("\0",)):
            yield Piece(entry.name, entry)
        elif layer is not None:
            zero = bool(cut.zeroed) and (layer, ended_part(names.tail(entry.name))) in cut.zeroed
            copies = [
                Piece(names.renumber(entry.name, new), entry, zero=zero)
                for new in new_indices.get(layer, ())
            ]
            yield from copies[:1]
            repeated += copies[1:]
        elif sliced := next((s for s in architecture.sliced if entry.name.endswith(s.name)), None):
            yield sliced_piece(entry, sliced, cut)
        else:
            yield Piece(entry.name, entry)
    yield from repeated


def files_of(
    checkpoint: Checkpoint, cut: Cut, shard_bytes: int | None = None
) -> dict[str, list[Piece]]:
    """The new checkpoint's files by name: as the parent's without those that become empty, or
    none larger than `shard_bytes` unless a single tensor is."""
    entries = (entry for shard in checkpoint.shards for entry in shard.tensors)
    groups = list(_groups(kept_pieces(entries, checkpoint.architecture, cut), shard_bytes))
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def is_whole_file(pieces: Sequence[Piece], shard: Header) -> bool:
    """Whether the pieces are all tensors of a file, under their old names."""
    return len(pieces) == len(shard.tensors) and all(
        piece.entry is entry
        and piece.name == entry.name
        and piece.sliced is None
        and not piece.zero
        for piece, entry in zip(pieces, shard.tensors, strict=True)
    )


def _groups(pieces: Iterable[Piece], shard_bytes: int | None) -> Iterator[list[Piece]]:
    group: list[Piece] = []
    size_bytes = 0
    for piece in pieces:
        if shard_bytes is None:
            full = bool(group) and group[-1].entry.file != piece.entry.file
        else:
            full = bool(group) and size_bytes + piece.size_bytes > shard_bytes
        if full:
            yield group
            group, size_bytes = [], 0
        group.append(piece)
        size_bytes += piece.size_bytes
    yield group
