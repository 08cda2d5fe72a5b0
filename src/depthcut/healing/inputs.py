"""What a healing depends on and needs, known before any model is loaded."""

import contextlib
import math
from pathlib import Path

import msgspec

from depthcut.errors import RecordError, SettingsError
from depthcut.records import (
    ModelFacts,
    Plan,
    RepairRecord,
    SliceRecord,
    inputs_digest,
    read_record,
)
from depthcut.settings import HealSettings, LoadSettings


def heal_inputs(
    model_digest: str,
    text_digest: str,
    settings: HealSettings,
    load: LoadSettings,
    teacher_digest: str = "",
) -> str:
    """Digest of everything that the healed weights depend on.

    Not of how a teacher is named, nor of what only tells or keeps how training goes.
    """
    alike = msgspec.structs.replace(
        settings, teacher="teacher" if teacher_digest else None, save_every=None, report_to="none"
    )
    return inputs_digest("heal", alike, load, model_digest, text_digest, teacher_digest)


def as_needed(settings: HealSettings) -> HealSettings:
    """The same settings, with no more tokens to read than the steps can use.

    For reading the text only: an endless data set is not read to its end.
    """
    used = settings.steps * settings.batch_size * settings.context + settings.held_out_tokens
    return msgspec.structs.replace(settings, tokens=min(settings.tokens, max(2, used)))


def as_loaded(settings: HealSettings, load: LoadSettings) -> LoadSettings:
    """How the model is loaded: qlora is a 4-bit base."""
    if settings.method == "qlora":
        return msgspec.structs.replace(load, load_in_4bit=True)
    return load


def plan_beside(folder: Path) -> Plan | None:
    """The plan that a cut checkpoint was made by; None: there is none that can be read."""
    try:
        return read_record(folder / "plan.json", Plan)
    except RecordError:
        return None


def parent_of(folder: Path) -> ModelFacts:
    """The model that was cut into a checkpoint's folder.

    Raises:
        SettingsError: Neither record nor plan tells.
    """
    with contextlib.suppress(RecordError):
        return read_record(folder / "depthcut.json", SliceRecord).parent
    with contextlib.suppress(RecordError):
        return read_record(folder / "depthcut.json", RepairRecord).parent
    plan = plan_beside(folder)
    if plan is None:
        raise SettingsError(
            f"--teacher parent: no plan.json in {folder} tells what was cut; name the model"
        )
    return plan.model


def check(settings: HealSettings) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        SettingsError: Such a number, and what is expected.
    """
    at_least = {"steps": 1, "batch_size": 1, "rank": 1, "warmup_steps": 0, "seed": 0}
    at_least |= {"micro_batch_size": 1, "eval_every": 1, "save_every": 1, "patience": 0}
    at_least |= {"teacher_kept": 0, "held_out_tokens": 0}
    for field, minimum in at_least.items():
        if (value := getattr(settings, field)) is not None and value < minimum:
            raise _refused(field, value, f"a number of at least {minimum}")
    for field in ("learning_rate", "alpha", "temperature"):
        value = getattr(settings, field)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise _refused(field, value, "a number above 0")
    for field in ("weight_decay", "clip"):
        value = getattr(settings, field)
        if not (math.isfinite(value) and value >= 0):
            raise _refused(field, value, "a number of at least 0")
    if not 0 <= settings.dropout < 1:
        raise _refused("dropout", settings.dropout, "a number from 0 to below 1")
    if settings.seed >= 2**32:
        raise _refused("seed", settings.seed, "a number below 2**32")
    _refuse_idle(settings)


def _refuse_idle(settings: HealSettings) -> None:
    """Options that nothing would come of."""
    if settings.teacher is not None and not settings.teacher.strip():
        raise _refused("teacher", repr(settings.teacher), "a model, or parent")
    if settings.teacher_kept and settings.teacher is None:
        raise SettingsError("--teacher-kept without a teacher: give --teacher parent")
    if settings.teacher_kept and settings.temperature != 1:
        raise SettingsError(
            "--teacher-kept and --temperature: what is kept of the teacher's predictions is at "
            "temperature 1; leave one of them out"
        )
    if settings.keep_adapter and settings.method not in ("lora", "qlora"):
        raise SettingsError(f"--keep-adapter: --method {settings.method} has no adapter to keep")
    if settings.patience and not settings.held_out_tokens:
        raise SettingsError("--patience asks for judgements: give --held-out-tokens too")


def _refused(field: str, value: object, expected: str) -> SettingsError:
    return SettingsError(f"--{field.replace('_', '-')} {value}: expected {expected}")
