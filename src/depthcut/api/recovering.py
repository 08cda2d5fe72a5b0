"""Winning quality back after a cut: repair, heal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from depthcut.api.cutting import is_of_gguf, proof, refuse_impossible
from depthcut.api.inputs import facts, load_source, open_documents, sequences_for
from depthcut.errors import SettingsError, SourceError, nearest
from depthcut.records import HealRecord, Plan, RepairRecord, read_record
from depthcut.settings import HealSettings, LoadSettings, RepairSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from depthcut.healing.losses.teachers import Untouched


def repair(
    model: str | Path,
    plan: Plan | str | Path,
    out: Path,
    settings: RepairSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    load: LoadSettings | None = None,
    force: bool = False,
) -> RepairRecord:
    """Cut a model by a plan and solve for weights that make up for the removed layers.

    Nothing is trained: output projections of the layers beside each removed block get the values,
    in closed form, with which the states behind the cut come nearest to the model's own.

    Args:
        model: A source: smollm2, a folder, a hub id, a .gguf file (the result is a folder).
        plan: A plan that removes whole layers, or its file.
        out: The folder to be; it must not exist.
        settings: The method, which text; see `RepairSettings`.
        texts: Documents in memory, instead of `settings.text`.
        load: Device and dtype in which the model runs.
        force: Also write a repair that does not help on text that was held out.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.model.sources import locate
    from depthcut.repairing.inputs import refuse_plan
    from depthcut.slicing import slice_checkpoint
    from depthcut.slicing.layout import check_plan

    settings, load, out = settings or RepairSettings(), load or LoadSettings(), Path(out)
    plan = plan if isinstance(plan, Plan) else read_record(Path(plan), Plan)
    refuse_existing(out)
    folder, other = locate(model, load), is_of_gguf(plan, model)
    check_plan(plan, facts(model, load=load), str(model), other_model=other)
    refuse_plan(plan)
    refuse_impossible(folder, plan, load)
    from depthcut.model.streaming import open_streamed
    from depthcut.repairing.methods import find_method
    from depthcut.repairing.repair import repair_checkpoint

    find_method(settings.method)
    text = open_documents(settings, texts)
    untouched = open_streamed(model, load) if settings.stream else load_source(model, None, load)

    def cut(into: Path) -> None:
        slice_checkpoint(
            folder,
            plan,
            into,
            source=str(model),
            other_model=other,
            verify=proof(folder, plan, load),
        )

    return repair_checkpoint(
        untouched,
        plan,
        lambda loaded: sequences_for(loaded, text, settings),
        settings,
        load=load,
        out=out,
        cut=cut,
        force=force,
    )


def heal(
    model: str | Path | PreTrainedModel,
    out: Path,
    settings: HealSettings | None = None,
    *,
    texts: Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    load: LoadSettings | None = None,
    announce: Callable[[str], object] = lambda line: None,
) -> HealRecord:
    """Train a cut model and write it as a checkpoint of the same form.

    Killed, the same call goes on where it stopped.

    Args:
        model: A source, or a causal language model in memory (it is not changed).
        out: The folder to be; it must not exist.
        settings: What is trained, the losses, steps, rates, text; see `HealSettings`.
        texts: Documents in memory, instead of `settings.text`.
        tokenizer: For a model in memory.
        load: Device, dtype, 4-bit base.
        announce: Told in lines what will be trained, and about how long it takes.

    Raises:
        DepthcutError: One of its kinds, see `depthcut.errors`.
    """
    from depthcut.files import refuse_existing
    from depthcut.healing.heal import heal_checkpoint
    from depthcut.healing.inputs import as_loaded, as_needed, check
    from depthcut.healing.losses.table import loss_weights
    from depthcut.healing.training.checkpoints import training_folder
    from depthcut.healing.training.sharding import heed_launcher, sharded

    settings, load = settings or HealSettings(), load or LoadSettings()
    check(settings)
    loss_weights(settings)
    heed_launcher(settings, load, in_memory=not isinstance(model, str | Path))
    if not training_folder(Path(out)).exists():
        refuse_existing(Path(out))
    text = open_documents(settings, texts)
    teacher = _teacher(model, settings, load)
    loaded = load_source(model, tokenizer, as_loaded(settings, load), on_cpu=sharded())
    sequences = sequences_for(loaded, text, as_needed(settings), answers_only=settings.answers_only)
    return heal_checkpoint(
        loaded, sequences, settings, load, Path(out), teacher=teacher, announce=announce
    )


def _teacher(
    model: str | Path | PreTrainedModel, settings: HealSettings, load: LoadSettings
) -> Untouched | None:
    """Found before the model is loaded: a misspelt name costs no wait."""
    from depthcut.healing.inputs import parent_of
    from depthcut.healing.losses.teachers import Untouched
    from depthcut.model.sources import locate

    if settings.teacher is None:
        return None
    source, revision, parent = settings.teacher, None, None
    if source == "parent":
        if not isinstance(model, str | Path):
            raise SettingsError("--teacher parent and a model in memory: name the teacher")
        parent = parent_of(locate(model, load))
        source, revision = parent.source, load.revision
    load = msgspec.structs.replace(load, load_in_4bit=False, revision=revision)
    try:
        found = facts(source, load=load)
    except SourceError as error:
        raise SourceError(f"--teacher: {error}{nearest(source, ('parent',))}") from error
    if parent is not None and found.digest != parent.digest:
        raise SettingsError(
            f"--teacher parent: {source} is not the model any more that was cut into {model}; name "
            "the teacher"
        )
    return Untouched(found, lambda: load_source(source, None, load))
