"""The stage: a cut checkpoint and a text in, the same checkpoint with trained weights out."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from depthcut.checkpoint.folder import Checkpoint, model_facts, open_checkpoint
from depthcut.errors import SettingsError, TextError
from depthcut.files import new_folder, refuse_existing, refuse_unwritable
from depthcut.healing.card import heal_card
from depthcut.healing.checkpoints import kept_checkpoints
from depthcut.healing.inputs import check, heal_inputs, plan_beside
from depthcut.healing.kept_teacher import kept_teacher
from depthcut.healing.lessons import Lesson, Rows
from depthcut.healing.losses import loss_weights
from depthcut.healing.methods import METHODS, Trainee
from depthcut.healing.objective import Objective
from depthcut.healing.rehearsal import compute_dtype, rehearsed, trainable
from depthcut.healing.result import copy_base, saved_base
from depthcut.healing.targets import cuts, targets
from depthcut.healing.teachers import OnlineTeacher, Teacher, refuse_other_vocabulary
from depthcut.healing.training import seeded, train
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import all_ranks
from depthcut.model.stored_weights import find_weight
from depthcut.records import HealRecord, Origin, Plan, write_record
from depthcut.settings import HealSettings, LoadSettings
from depthcut.text.sequences import Sequences

_HELD_OUT_SHARE = 8
"""At most every eighth sequence is held out."""


def heal_checkpoint(
    loaded: LoadedModel,
    sequences: Sequences,
    settings: HealSettings,
    load: LoadSettings,
    out: Path,
    *,
    teacher: LoadedModel | None = None,
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
    refuse_existing(out)
    refuse_unwritable(out)
    rows = _split(sequences, settings)
    teacher_digest = teacher.facts.digest if teacher else ""
    inputs = heal_inputs(
        loaded.facts.digest, sequences.facts.digest, settings, load, teacher_digest
    )
    ranks = all_ranks()
    with kept_checkpoints(out, inputs, ranks) as checkpoints:
        base = open_checkpoint(loaded.folder or saved_base(loaded, checkpoints.folder / "base"))
        model_facts(base, source=str(out))  # a type that cannot be described: said before training
        plan = plan_beside(base.folder)
        chosen = targets(settings, len(loaded.layers), plan.kept_layers if plan else None)
        lesson = Lesson(
            rows, _objective(loaded, teacher, rows, settings, load=load, plan=plan), settings
        )
        with seeded(settings.seed), METHODS[settings.method](loaded, settings, chosen) as trainee:
            _refuse_unstored(base, trainee)
            pace = rehearsed(loaded, trainee.model, lesson, checkpoints, announce)
            training = train(
                trainee.model,
                lesson,
                pace,
                device=loaded.device,
                autocast=compute_dtype(loaded),
                checkpoints=checkpoints,
            )
            record = None
            if ranks.rank == 0:
                with new_folder(out, needed_bytes=loaded.facts.weight_bytes) as working:
                    _put(trainee, base, working, keep_adapter=settings.keep_adapter)
                    record = HealRecord(
                        origin=Origin.since(started, inputs=inputs),
                        model=loaded.facts,
                        teacher=teacher.facts if teacher else None,
                        text=sequences.facts,
                        settings=settings,
                        load=load,
                        trained_parameters=trainable(trainee.model),
                        trained_tokens=training.tokens,
                        micro_batch_size=pace.micro_batch_size,
                        devices=ranks.count,
                        starts=checkpoints.begun.starts,
                        training_seconds=training.seconds,
                        losses=training.losses,
                        judgements=training.judgements,
                        held_out_tokens=sum(len(each) for each in rows.held_out),
                        best_step=training.best_step,
                        stopped_early=training.stopped_early,
                        result=model_facts(open_checkpoint(working), source=str(out)),
                    )
                    card = heal_card(record, base.folder, name=out.name)
                    (working / "README.md").write_text(card, encoding="utf-8")
                    write_record(record, working / "depthcut.json")
            told = ranks.of_first(record)
    assert told is not None  # the first process wrote it
    return told


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
    answers = tuple(sequences.answers[each] for each in order) if sequences.answers else ()
    return Rows(tuple(ids[:start]), tuple(ids[start:]), answers)


def _objective(
    loaded: LoadedModel,
    teacher: LoadedModel | None,
    rows: Rows,
    settings: HealSettings,
    *,
    load: LoadSettings,
    plan: Plan | None,
) -> Objective:
    weights = loss_weights(settings)
    if teacher is None:
        return Objective(weights)
    refuse_other_vocabulary(loaded, teacher)
    ours, theirs = _depths(loaded, teacher, plan) if "hidden" in weights else ((), ())
    if settings.teacher_top_k:
        asked: Teacher = kept_teacher(teacher, rows, settings, load)
    else:
        asked = OnlineTeacher(teacher, theirs, logits="kl" in weights)
    return Objective(
        weights,
        teacher=asked,
        compared=[loaded.layers[depth - 1] for depth in ours],
        temperature=settings.temperature,
    )


def _depths(
    loaded: LoadedModel, teacher: LoadedModel, plan: Plan | None
) -> tuple[Sequence[int], Sequence[int]]:
    """From the first cut on, the depths of both models at which their states should be the same."""
    count, layers = len(loaded.layers), len(teacher.layers)
    kept = plan.kept_layers if plan else tuple(range(count))
    if len(kept) != count or (plan is None and count != layers) or max(kept) >= layers:
        raise SettingsError(
            f"--loss hidden compares {count} layers with the teacher's {layers}, and no plan.json "
            "beside the weights tells which they were: use --loss kl"
        )
    first = min(cuts(kept), default=0)
    ours = range(max(first, 1), count + 1)
    return ours, [kept[depth] if depth < count else layers for depth in ours]


def _refuse_unstored(base: Checkpoint, trainee: Trainee) -> None:
    """Before the training, not after it."""
    for name, tensor in trainee.learned():
        find_weight(base, name, tensor.shape)


def _put(trainee: Trainee, base: Checkpoint, working: Path, *, keep_adapter: bool) -> None:
    copy_base(base.folder, working)
    copied = open_checkpoint(working)
    for name, tensor in trainee.learned():
        trainee.put(find_weight(copied, name, tensor.shape), tensor)
    if keep_adapter and trainee.save_adapter is not None:
        trainee.save_adapter(working / "adapter")
