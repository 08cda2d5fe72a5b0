"""The stage: a model, a plan and a text to the cut checkpoint, whose MLPs make up for the cut."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from depthcut.architectures.names import LayerNames
from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.checkpoint.headers import TensorEntry
from depthcut.errors import SettingsError, TextError
from depthcut.files import new_folder
from depthcut.model.batching import fitting_batch_size, free_memory_bytes
from depthcut.model.loading import LoadedModel
from depthcut.model.stored_weights import find_weight, read_weight, write_weight
from depthcut.progress import progress
from depthcut.records import (
    Block,
    Origin,
    Plan,
    RepairedBlock,
    RepairRecord,
    layers_in_words,
    write_record,
)
from depthcut.repairing.card import repair_card
from depthcut.repairing.inputs import refuse_plan, repair_inputs
from depthcut.repairing.methods import Method, Solution, Sums, find_method
from depthcut.repairing.passes import Passes, passing
from depthcut.repairing.projections import Projection, last_projection, stored_names
from depthcut.settings import LoadSettings, RepairSettings
from depthcut.text.sequences import Batch, Sequences, padded

_HELD_OUT_EVERY = 8
_CPU_BATCH_TOKENS = 1024
_SHARE = 0.4
"""Of the free memory that sums, and states on the way, may take each."""


def repair_checkpoint(
    loaded: LoadedModel,
    plan: Plan,
    sequences: Sequences,
    settings: RepairSettings,
    *,
    load: LoadSettings,
    out: Path,
    cut: Callable[[Path], object],
    force: bool = False,
) -> RepairRecord:
    """Cut a model and give the layer before each removed block a projection that makes up for it.

    The blocks are repaired in order, each on the states that the model gives whose earlier blocks
    are repaired, towards those of the untouched model. Every eighth sequence is not fitted; it
    chooses the ridge and judges. The result has the tensors, names and dtypes of the cut
    checkpoint. `loaded` is as before when this returns.

    Args:
        loaded: The model that the plan is for, from a folder.
        plan: Which layers go.
        sequences: Made with its tokenizer.
        settings: The method.
        load: How it was loaded, for the record.
        out: The folder to be; it appears whole or not at all.
        cut: Writes the cut checkpoint into the folder that it is given.
        force: Also write a repair that does not help on held-out text.

    Raises:
        SettingsError: An unknown method, a quantised model, sums that do not fit in memory, states
            that are no numbers, or a repair that does not help.
        PlanError: The plan repeats or moves layers, or takes parts of them.
        ArchitectureError: A layer before a block does not end with a plain projection.
        TextError: Too little text to hold some out.
        OutputError: `out` exists or cannot be written.
    """
    started = time.monotonic()
    find_method(settings.method)  # before anything is read
    refuse_plan(plan)
    if getattr(loaded.model, "is_quantized", False):
        raise SettingsError(
            "quantised weights cannot be repaired: give the checkpoint before quantisation, "
            "without --load-in-4bit"
        )
    if loaded.folder is None:
        raise SettingsError("a model in memory cannot be repaired: give its checkpoint's folder")
    parent = open_checkpoint(loaded.folder)
    fitted, held_out = _split(sequences)
    with new_folder(out, needed_bytes=loaded.facts.weight_bytes) as working:
        cut(working / "cut")
        for path in sorted((working / "cut").iterdir()):
            path.rename(working / path.name)
        (working / "cut").rmdir()
        checkpoint = open_checkpoint(working)
        places = [  # all are refused or none, before the text is read
            _place(loaded, plan, parent, checkpoint, block) for block in plan.removed
        ]
        _refuse_large(loaded, places)
        blocks = []
        for place, solved in _solved(loaded, places, fitted, held_out, settings):
            if not (solved.after < solved.before or force):
                raise _no_help(place.block, solved, settings)
            for name, tensor in solved.tensors.items():
                write_weight(place.entries[name], tensor)
            blocks.append(_told(place, solved))
        record = RepairRecord(
            origin=Origin.since(
                started,
                inputs=repair_inputs(
                    plan, loaded.facts.digest, sequences.facts.digest, settings, load
                ),
            ),
            plan=plan,
            parent=loaded.facts,
            text=sequences.facts,
            settings=settings,
            load=load,
            fitted_tokens=_count(fitted),
            held_out_tokens=_count(held_out),
            blocks=tuple(blocks),
            result=model_facts(open_checkpoint(working), source=str(out)),
        )
        card = repair_card(record, loaded.folder, name=out.name)
        (working / "README.md").write_text(card, encoding="utf-8")
        write_record(record, working / "depthcut.json", overwrite=True)
    return record


class _Place(NamedTuple):
    """Where a block is made up for."""

    block: Block
    projection: Projection
    entries: Mapping[str, TensorEntry]
    """The projection's tensors in the cut checkpoint, by their names in the model."""


class _Solved(NamedTuple):
    tensors: dict[str, Tensor]
    """By their names in the model, in the checkpoint's dtypes."""
    solution: Solution
    before: float
    after: float


def _place(
    loaded: LoadedModel, plan: Plan, parent: Checkpoint, checkpoint: Checkpoint, block: Block
) -> _Place:
    projection = last_projection(loaded, block[0] - 1)
    index = plan.kept_layers.index(projection.layer)
    entries = {}
    for name, stored in stored_names(loaded, projection).items():
        shape = getattr(projection.module, name.rpartition(".")[2]).shape
        # Refused by the name that people know: the cut is not where it will be.
        find_weight(parent, _name_in(parent, stored, projection.layer), shape)
        entries[name] = find_weight(checkpoint, _name_in(checkpoint, stored, index), shape)
    return _Place(block, projection, entries)


def _name_in(checkpoint: Checkpoint, name: str, layer: int) -> str:
    """What a checkpoint calls a layer's tensor; its stack may lie deeper than the model's."""
    names = LayerNames(checkpoint.architecture.stacks)
    alike = [
        each
        for each in checkpoint.tensors
        if names.layer(each) == layer and names.tail(each) == names.tail(name)
    ]
    return alike[0] if len(alike) == 1 else names.renumber(name, layer)


def _solved(
    loaded: LoadedModel,
    places: Sequence[_Place],
    fitted: Sequence[Tensor],
    held_out: Sequence[Tensor],
    settings: RepairSettings,
) -> Iterator[tuple[_Place, _Solved]]:
    """Each block's solution, which is put into the model in memory until all are done."""
    size = settings.batch_size or _batch_size(loaded, fitted)
    parts = [(batch, False) for batch in _batches(fitted, size)]
    parts += [(batch, True) for batch in _batches(held_out, size)]
    original = {
        place.projection: {name: _own(place.projection, name).clone() for name in place.entries}
        for place in places
    }
    batches = [batch for batch, _ in parts]
    memory_bytes = int(free_memory_bytes(loaded.device) * _SHARE)
    total = (_count(fitted) + _count(held_out)) * len(places)
    try:
        with passing(loaded, batches, memory_bytes) as passes, progress("repair", total) as advance:
            for place in places:
                more = place is not places[-1]
                sums = _summed(passes, place, parts, advance, more=more)
                solved = _best(place, *sums, find_method(settings.method))
                place.projection.put(solved.tensors)
                yield place, solved
    finally:
        for projection, tensors in original.items():
            projection.put(tensors)


def _summed(
    passes: Passes,
    place: _Place,
    parts: Sequence[tuple[Batch, bool]],
    advance: Callable[[float], None],
    *,
    more: bool,
) -> tuple[Sums, Sums]:
    """Over the sequences that are fitted, and over those that are held out."""
    sums: dict[bool, Sums] = {}
    seen = passes.over(place.block, place.projection, more=more)
    for (batch, held), each in zip(parts, seen, strict=True):
        if held not in sums:
            hidden, inner = each.target.shape[1], each.given.shape[1]
            sums[held] = Sums.empty(hidden, inner, each.given.device)
        sums[held].add(*each)
        advance(int(batch.mask.sum()))
    return sums[False], sums[True]


def _best(place: _Place, fitted: Sums, held_out: Sums, method: Method) -> _Solved:
    """The solution that does best on the sequences held out, as the checkpoint can hold it."""
    stored = {name: read_weight(entry) for name, entry in place.entries.items()}
    before = place.projection.matrix(stored).to(fitted.inputs.device)
    if not all(bool(torch.isfinite(each.inputs).all()) for each in (fitted, held_out)) or not all(
        bool(torch.isfinite(each.wanted).all()) for each in (fitted, held_out)
    ):
        raise SettingsError(
            f"the states before {layers_in_words([place.block])} are no numbers in this dtype: "
            "load the model with --dtype float32"
        )
    found = []
    for solution in method(fitted, before):
        made = place.projection.tensors(solution.matrix)
        rounded = {name: made[name].to("cpu", stored[name].dtype) for name in stored}
        matrix = place.projection.matrix(rounded).to(before.device)
        found.append(_Solved(rounded, solution, held_out.error(before), held_out.error(matrix)))
    return min(found, key=lambda each: each.after)


def _own(projection: Projection, name: str) -> Tensor:
    tensor: Tensor = getattr(projection.module, name.rpartition(".")[2])
    return tensor.detach()


def _told(place: _Place, solved: _Solved) -> RepairedBlock:
    return RepairedBlock(
        start=place.block[0],
        stop=place.block[1],
        tensors=tuple(entry.name for entry in place.entries.values()),
        ridge=solved.solution.ridge,
        condition=solved.solution.condition,
        error_before=solved.before,
        error_after=solved.after,
    )


def _no_help(block: Block, solved: _Solved, settings: RepairSettings) -> SettingsError:
    return SettingsError(
        f"{settings.method} does not make up for {layers_in_words([block])}: on text that was held "
        f"out the states are off by {solved.after:.4g} of their length, and by {solved.before:.4g} "
        "without it; give more --tokens, another --method, or --force to write it all the same"
    )


def _split(sequences: Sequences) -> tuple[list[Tensor], list[Tensor]]:
    """Those that are fitted, and every eighth."""
    held_out = list(sequences.sequences[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])
    if not held_out:
        raise TextError(
            f"{len(sequences.sequences)} sequences of text: at least {_HELD_OUT_EVERY} are needed, "
            "of which one is held out to judge; give more --tokens or text, or lower --context"
        )
    fitted = [
        each for number, each in enumerate(sequences.sequences, start=1) if number % _HELD_OUT_EVERY
    ]
    return fitted, held_out


def _batches(sequences: Sequence[Tensor], size: int) -> Iterator[Batch]:
    for start in range(0, len(sequences), size):
        yield padded(sequences[start : start + size])


def _batch_size(loaded: LoadedModel, sequences: Sequence[Tensor]) -> int:
    longest = max(len(each) for each in sequences)
    on_cpu = loaded.device.type == "cpu"
    return fitting_batch_size(
        loaded,
        longest,
        bytes_per_token=8 * 8 * loaded.facts.hidden_size,
        most=max(1, _CPU_BATCH_TOKENS // longest) if on_cpu else 32,
    )


def _refuse_large(loaded: LoadedModel, places: Sequence[_Place]) -> None:
    """Raise SettingsError where the sums of a block and their decomposition have no room."""
    inner = max(place.projection.inner for place in places)
    needed = 8 * inner * (2 * (inner + loaded.facts.hidden_size) + 3 * inner)
    if needed > (there := _SHARE * free_memory_bytes(loaded.device)):
        raise SettingsError(
            f"repair keeps {needed / 1e9:.1f} GB of sums and may take {there / 1e9:.1f} GB: choose "
            "another --device, or heal the cut model instead"
        )


def _count(sequences: Sequence[Tensor]) -> int:
    return sum(len(each) for each in sequences)
