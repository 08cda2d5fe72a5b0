"""The stage: a model, a plan and a text to the cut checkpoint, whose layers make up for the cut."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import SettingsError, TextError
from depthcut.files import new_folder
from depthcut.model.loading import LoadedModel
from depthcut.model.memory import free_memory_bytes
from depthcut.model.stored_weights import write_weight
from depthcut.model.streaming import StreamedModel
from depthcut.records import (
    Block,
    Origin,
    Plan,
    RepairedBlock,
    RepairRecord,
    RepairStep,
    error_words,
    layers_in_words,
    write_record,
)
from depthcut.repairing.card import repair_card
from depthcut.repairing.inputs import refuse_plan, repair_inputs
from depthcut.repairing.layers import layers_in_memory, layers_streamed
from depthcut.repairing.methods import find_method
from depthcut.repairing.places import Place, find_places
from depthcut.repairing.solving import SHARE, Solved, helped, solve_places
from depthcut.settings import LoadSettings, RepairSettings
from depthcut.text.sequences import Sequences

_HELD_OUT_EVERY = 8


def repair_checkpoint(
    model: LoadedModel | StreamedModel,
    plan: Plan,
    read: Callable[[LoadedModel], Sequences],
    settings: RepairSettings,
    *,
    load: LoadSettings,
    out: Path,
    cut: Callable[[Path], object],
    force: bool = False,
) -> RepairRecord:
    """Cut a model and give layers beside each removed block weights that make up for it.

    They are found in order, each on the states that the model gives with those before it,
    towards the untouched model's. Every eighth sequence is not fitted; it chooses the ridge and
    judges. A layer behind a block stays as it was where that would not help. The result has the
    tensors, names and dtypes of the cut checkpoint. `model` is as before when this returns.

    Args:
        model: What the plan is for, from a folder.
        plan: Which layers go.
        read: Gives the text, made with its tokenizer; called once it is known that the model can be
            repaired.
        settings: The method.
        load: How it was loaded, for the record.
        out: The folder to be; it appears whole or not at all.
        cut: Writes the cut checkpoint into the folder that it is given.
        force: Also write a repair that does not help on held-out text.

    Raises:
        SettingsError: An unknown method, a quantised model, sums that do not fit in memory, states
            that are no numbers, or a repair that does not help.
        PlanError: The plan repeats or moves layers, or takes parts of them.
        ArchitectureError: A layer before a block adds no plain projection to the residual stream,
            or the method is not for this width.
        TextError: Too little text to hold some out.
        OutputError: `out` exists or cannot be written.
    """
    started = time.monotonic()
    method = find_method(settings.method)
    refuse_plan(plan)
    if isinstance(model, StreamedModel):
        loaded, opened = model.loaded, layers_streamed(model)
    else:
        loaded, opened = model, layers_in_memory(model)
    with opened as layers:
        places = find_places(layers, plan, method)
        _refuse_large(loaded, places)
        sequences = read(loaded)
        fitted, held_out = _split(sequences)
        fitted = [] if method.solve is None else fitted
        with new_folder(out, needed_bytes=loaded.facts.weight_bytes) as working:
            _cut_into(working, cut)
            made: dict[Block, list[RepairStep]] = {block: [] for block in plan.removed}
            for place, solved in solve_places(
                layers,
                plan,
                places,
                checkpoint=open_checkpoint(working),
                fitted=fitted,
                held_out=held_out,
                settings=settings,
            ):
                if place.needed and not (helped(solved) or force):
                    raise _no_help(place, solved, settings)
                for each in solved:
                    for name, tensor in each.tensors.items():
                        write_weight(each.entries[name], tensor)
                    made[place.block].append(_told(place, each))
            inputs = repair_inputs(
                plan, loaded.facts.digest, sequences.facts.digest, settings, load
            )
            record = RepairRecord(
                origin=Origin.since(started, inputs=inputs),
                plan=plan,
                parent=loaded.facts,
                text=sequences.facts,
                settings=settings,
                load=load,
                fitted_tokens=_count(fitted),
                held_out_tokens=_count(held_out),
                blocks=tuple(
                    RepairedBlock(start=start, stop=stop, steps=tuple(steps))
                    for (start, stop), steps in made.items()
                ),
                result=model_facts(open_checkpoint(working), source=str(out)),
            )
            card = repair_card(record, loaded.folder, name=out.name)
            (working / "README.md").write_text(card, encoding="utf-8")
            write_record(record, working / "depthcut.json", overwrite=True)
    return record


def _cut_into(working: Path, cut: Callable[[Path], object]) -> None:
    with torch.inference_mode(mode=False):  # it may build models
        cut(working / "cut")
    for path in sorted((working / "cut").iterdir()):
        path.rename(working / path.name)
    (working / "cut").rmdir()


def _told(place: Place, solved: Solved) -> RepairStep:
    return RepairStep(
        layer=place.layer,
        tensors=tuple(entry.name for entry in solved.entries.values()),
        ridge=solved.solution.ridge if solved.solution else None,
        condition=solved.solution.condition if solved.solution else None,
        strength=solved.strength,
        error_before=solved.before,
        error_after=solved.after,
    )


def _no_help(place: Place, solved: Sequence[Solved], settings: RepairSettings) -> SettingsError:
    more = "" if find_method(settings.method).solve is None else "more --tokens, "
    return SettingsError(
        f"{settings.method} does not make up for {layers_in_words([place.block])}: on text that "
        f"was held out {error_words(settings)} is {solved[-1].after:.4g}, and "
        f"{solved[0].before:.4g} without it; give {more}another --method, or --force to write it "
        "all the same"
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


def _refuse_large(loaded: LoadedModel, places: Sequence[Place]) -> None:
    """Raise SettingsError where the sums of a solve and their decomposition have no room."""
    columns = max(change.columns for place in places for change in place.changes)
    needed = 8 * columns * (2 * (columns + loaded.facts.hidden_size) + 3 * columns)
    if needed > (there := SHARE * free_memory_bytes(loaded.device)):
        raise SettingsError(
            f"repair keeps {needed / 1e9:.1f} GB of sums and may take {there / 1e9:.1f} GB: choose "
            "another --device or --method refit-mlp, or heal the cut model instead"
        )


def _count(sequences: Sequence[Tensor]) -> int:
    return sum(len(each) for each in sequences)
