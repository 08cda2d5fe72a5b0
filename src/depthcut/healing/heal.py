"""The stage: a cut checkpoint and a text in, the same checkpoint with trained weights out."""

import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.errors import RecordError, SettingsError, TextError
from depthcut.files import (
    discard,
    new_folder,
    refuse_existing,
    refuse_unwritable,
    sole_writer,
)
from depthcut.healing.card import heal_card
from depthcut.healing.inputs import check, heal_inputs, plan_beside
from depthcut.healing.losses.teachers import Untouched
from depthcut.healing.losses.teaching import objective_of
from depthcut.healing.result import copy_base, saved_base
from depthcut.healing.rows import Rows
from depthcut.healing.training.checkpoints import Checkpoints, kept_checkpoints, training_folder
from depthcut.healing.training.history import helped
from depthcut.healing.training.lessons import Lesson
from depthcut.healing.training.rehearsal import compute_dtype, rehearsed, trainable
from depthcut.healing.training.sharding import sharded
from depthcut.healing.training.train import seeded, train
from depthcut.healing.training.trainer import refuse_unknown
from depthcut.healing.weights.methods import METHODS, Trainee
from depthcut.healing.weights.targets import targets
from depthcut.model.loading import LoadedModel
from depthcut.model.positions import learned_positions
from depthcut.model.ranks import all_ranks
from depthcut.model.stored_weights import find_weight
from depthcut.records import HealRecord, Origin, read_record, write_record
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import Sequences

_log = logging.getLogger(__name__)
_HELD_OUT_SHARE = 8
"""At most every eighth sequence is held out."""


def heal_checkpoint(
    loaded: LoadedModel,
    sequences: Sequences,
    settings: HealSettings,
    load: LoadSettings,
    out: Path,
    *,
    teacher: Untouched | None = None,
    announce: Callable[[str], object] = lambda line: None,
) -> HealRecord:
    """Train a model on a text and write it as a checkpoint of the same form.

    The result has the tensors, names and dtypes of the checkpoint it came from. What training came
    to is put into that checkpoint's files and rounded once to their dtype: also when training ran
    in another dtype, or on a 4-bit base (QLoRA, arXiv:2305.14314), whose rounding so never reaches
    the result. A model in memory is as before when this returns.

    Until it is done, checkpoints lie in `<out>.training`: the same call goes on from there.

    Args:
        loaded: The model; one in memory is saved first, in its own dtype.
        sequences: Made with its tokenizer; repeated, shuffled, until the steps are done.
        settings: What is trained, how and how long.
        load: How it was loaded, for the record.
        out: The folder to be; it must not exist.
        teacher: Whom it learns from, where a loss asks for one.
        announce: Told in lines what will be trained, and how long it may take.

    Raises:
        SettingsError: Numbers that cannot be meant, a teacher of another vocabulary, a 4-bit model
            without a folder, too little memory, or a loss that ceased to be a number.
        TextError: Nothing to train on.
        ArchitectureError: Weights that cannot be trained or put back.
        OutputError: `out` exists or cannot be written, or a training with other settings lies
            beside it.
        MissingExtraError: peft is not installed.
    """
    started = time.monotonic()
    check(settings)
    refuse_unknown(settings)
    _refuse_long(loaded, sequences)
    digest = teacher.facts.digest if teacher else ""
    inputs = heal_inputs(loaded.facts.digest, sequences.facts.digest, settings, load, digest)
    if (done := _finished(out, inputs)) is not None:
        return done
    refuse_existing(out)
    refuse_unwritable(out)
    rows = _split(sequences, settings)
    ranks, autocast = all_ranks(), compute_dtype(loaded)
    with kept_checkpoints(out, inputs, ranks, sharded=sharded()) as checkpoints:
        base = open_checkpoint(_base(loaded, checkpoints))
        model_facts(base, source=str(out))  # a type that cannot be described: said before training
        plan = plan_beside(base.folder)
        chosen = targets(settings, len(loaded.layers), plan)
        objective = objective_of(loaded, teacher, rows, settings, load=load, plan=plan)
        lesson = Lesson(rows, objective, settings)
        with seeded(settings.seed), METHODS[settings.method](loaded, settings, chosen) as trainee:
            model = trainee.model
            _refuse_unstored(base, trainee)
            pace = rehearsed(
                loaded, model, lesson, checkpoints, autocast=autocast, announce=announce
            )
            training = train(
                model,
                lesson,
                pace,
                loaded=loaded,
                autocast=autocast,
                checkpoints=checkpoints,
            )
            tell = partial(
                HealRecord,
                origin=Origin.since(started, inputs=inputs),
                model=loaded.facts,
                teacher=teacher.facts if teacher else None,
                text=sequences.facts,
                settings=settings,
                load=load,
                trained_parameters=trainable(model),
                micro_batch_size=pace.micro_batch_size,
                devices=ranks.count,
                starts=checkpoints.begun.starts,
                held_out_tokens=sum(len(each) for each in rows.held_out),
                trained_tokens=training.tokens,
                training_seconds=training.seconds,
                losses=training.losses,
                judgements=training.judgements,
                best_step=training.best_step,
                stopped_early=training.stopped_early,
            )
            first = ranks.rank == 0
            told = ranks.of_first(_written(out, loaded, trainee, base, tell) if first else None)
    assert told is not None  # the first process wrote it
    _warn_of_no_help(told)
    return told


def _finished(out: Path, inputs: str) -> HealRecord | None:
    """The record of this very healing, killed after it was done and before it had tidied up."""
    if not (training_folder(out).exists() and out.exists()):
        return None
    with contextlib.suppress(RecordError):
        record = read_record(out / "depthcut.json", HealRecord)
        if record.origin.inputs == inputs:
            with sole_writer(training_folder(out)):
                discard(training_folder(out))
            return record
    return None


def _base(loaded: LoadedModel, checkpoints: Checkpoints) -> Path:
    """The folder of the checkpoint that is trained; a model in memory is saved first."""
    if loaded.folder is not None:
        return loaded.folder
    folder = checkpoints.folder / "base"
    if all_ranks().rank == 0:
        saved_base(loaded, folder)
    all_ranks().everywhere(None)
    return folder


def _refuse_long(loaded: LoadedModel, sequences: Sequences) -> None:
    longest = max((len(ids) for ids in sequences.sequences), default=0)
    positions = learned_positions(loaded)
    if positions is not None and longest > positions:
        raise SettingsError(
            f"{loaded.facts.source} has {positions:,} positions, and the text has sequences of "
            f"{longest:,} tokens: give --context {positions}"
        )


def _warn_of_no_help(record: HealRecord) -> None:
    if helped(record.judgements):
        return
    first = record.judgements[0].loss
    best = min(each.loss for each in record.judgements[1:])
    _log.warning(
        "training did not help: on held-out text the loss was %.4f before and %.4f at best; lower "
        "--learning-rate, or give more text and --steps",
        *(first, best),
    )


def _split(sequences: Sequences, settings: HealSettings) -> Rows:
    """What is trained on, and a fair sample of it that is not."""
    whole = sequences.sequences
    if not whole:
        raise TextError("no sequence to train on: give more text")
    asked = settings.held_out_tokens / (sum(len(each) for each in whole) / len(whole))
    count = min(round(asked), len(whole) // _HELD_OUT_SHARE)
    every = len(whole) // count if count else len(whole) + 1
    held = set(range(every - 1, every * count, every))
    order = [each for each in range(len(whole)) if each not in held] + sorted(held)
    ids = [whole[each] for each in order]
    start = len(whole) - len(held)
    if settings.patience and not held:
        raise TextError(
            f"--patience judges on every eighth sequence, and the text has {len(whole)}: give more "
            "text, or lower --context"
        )
    answers = tuple(sequences.answers[each] for each in order) if sequences.answers else ()
    return Rows(tuple(ids[:start]), tuple(ids[start:]), answers)


def _refuse_unstored(base: Checkpoint, trainee: Trainee) -> None:
    """Before the training, not after it."""
    for name, tensor in trainee.learned():
        find_weight(base, name, tensor.shape)


def _written(
    out: Path,
    loaded: LoadedModel,
    trainee: Trainee,
    base: Checkpoint,
    tell: Callable[..., HealRecord],
) -> HealRecord:
    """The result in its folder: the base with what was learned, the record and its card."""
    with new_folder(out, needed_bytes=loaded.facts.weight_bytes) as working:
        _put(loaded, trainee, base, working)
        record = tell(result=model_facts(open_checkpoint(working), source=str(out)))
        if record.settings.keep_adapter and trainee.save_adapter is not None:
            trainee.save_adapter(working / "adapter")
        card = heal_card(record, base.folder, name=out.name)
        (working / "README.md").write_text(card, encoding="utf-8")
        write_record(record, working / "depthcut.json")
    return record


def _put(loaded: LoadedModel, trainee: Trainee, base: Checkpoint, working: Path) -> None:
    copy_base(base.folder, working)
    copied = open_checkpoint(working)
    ties: dict[str, str] = getattr(loaded.model, "all_tied_weights_keys", {})
    for name, tensor in trainee.learned():
        if not bool(torch.isfinite(tensor).all()):
            raise SettingsError(
                f"{name} came out with values that are no numbers: lower --learning-rate, or train "
                "in another --dtype"
            )
        trainee.put(find_weight(copied, name, tensor.shape), tensor)
        for other, source in ties.items():
            if source == name and other in copied.tensors:  # stored twice
                trainee.put(copied.tensors[other], tensor)
