"""Before the training: how many sequences fit, how long it may take, and what will be trained."""

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from torch import nn

from depthcut.errors import SettingsError
from depthcut.healing.rows import Rows, collate
from depthcut.healing.training.checkpoints import Checkpoints
from depthcut.healing.training.lessons import Lesson, Pace
from depthcut.healing.training.sharding import sharded
from depthcut.healing.training.train import seeded
from depthcut.model.batching import activation_bytes, fitting_batch_size
from depthcut.model.loading import LoadedModel
from depthcut.model.memory import free_memory_bytes
from depthcut.model.ranks import all_ranks
from depthcut.settings import HealSettings

_CPU_PASS_TOKENS = 2048
_LONG_SECONDS = 48 * 3600
_STATE_BYTES = 12
"""Of a trained parameter: its gradient and AdamW's two averages, float32."""


def rehearsed(
    loaded: LoadedModel,
    model: nn.Module,
    lesson: Lesson,
    checkpoints: Checkpoints,
    *,
    autocast: torch.dtype,
    announce: Callable[[str], object],
) -> Pace:
    """Choose the sequences per forward pass, try one pass and tell what is to come.

    A training that goes on keeps the choice it was begun with.

    Raises:
        SettingsError: Not even one sequence fits, or numbers that do not divide.
    """
    rows, settings, ranks = lesson.rows, lesson.settings, all_ranks()
    count = ranks.count
    if settings.batch_size % count:
        raise SettingsError(
            f"--batch-size {settings.batch_size} does not share out among {count} processes: "
            f"expected a multiple of {count}"
        )
    own = settings.batch_size // count
    whole_bytes = state_bytes = _STATE_BYTES * trainable(model)
    if sharded():  # only now the weights themselves come to the device
        state_bytes = (whole_bytes + _weight_bytes(model)) // count
    _refuse_state(loaded, settings, state_bytes)
    _refuse_full_disk(loaded, settings, whole_bytes, checkpoints.folder)
    begun = checkpoints.begun
    if begun.micro_batch_size is not None:
        size, recompute = begun.micro_batch_size, begun.recompute
    else:
        size, recompute = _chosen(loaded, rows, settings, own, state_bytes)
    seconds = None
    while seconds is None and not recompute and not sharded():  # which is yet to be shared out
        try:
            seconds = _tried(loaded, model, lesson, size, autocast)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if settings.micro_batch_size is not None:
                raise _no_room(loaded, settings, size) from error
            recompute = size == 1
            size = _divisor(own, size // 2)
    sizes = ranks.everywhere((size, recompute))
    size, recompute = min(each for each, _ in sizes), any(each for _, each in sizes)
    if ranks.rank == 0:
        checkpoints.note(msgspec.structs.replace(begun, micro_batch_size=size, recompute=recompute))
    pace = Pace(size, own // size, recompute)
    for line in _told(loaded, model, lesson, pace, seconds):
        announce(line)
    return pace


def trainable(model: nn.Module) -> int:
    """Parameters that train."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)


def compute_dtype(loaded: LoadedModel) -> torch.dtype:
    """What products are computed in: as the model was loaded; asked before its weights train."""
    loaded_in = getattr(loaded.model, "dtype", torch.float32)
    return loaded_in if loaded_in in (torch.bfloat16, torch.float16) else torch.float32


def _chosen(
    loaded: LoadedModel, rows: Rows, settings: HealSettings, own: int, state_bytes: int
) -> tuple[int, bool]:
    """Sequences per forward pass, and whether activations must be computed again."""
    if (asked := settings.micro_batch_size) is not None:
        if own % asked:
            raise SettingsError(
                f"--micro-batch-size {asked} does not divide the {own} sequences of a step on each "
                "device: expected one of " + ", ".join(map(str, _divisors(own)))
            )
        return asked, settings.recompute
    longest = max(len(each) for each in rows.trained)
    on_cpu = loaded.device.type == "cpu"
    fitting = fitting_batch_size(
        loaded,
        longest,
        bytes_per_token=_kept_bytes(loaded),
        reserved_bytes=state_bytes,
        most=max(1, _CPU_PASS_TOKENS // longest) if on_cpu else 1 << own.bit_length(),
    )
    needed = longest * (activation_bytes(loaded) + _kept_bytes(loaded)) + state_bytes
    short = needed > free_memory_bytes(loaded.device) / 2
    return _divisor(own, fitting), settings.recompute or short


def _tried(
    loaded: LoadedModel, model: nn.Module, lesson: Lesson, size: int, dtype: torch.dtype
) -> float:
    """Seconds of one pass forward and back over the longest sequences; nothing is changed."""
    rows = lesson.rows
    order = sorted(range(len(rows.trained)), key=lambda each: -len(rows.trained[each]))
    batch = collate([rows.row(number) for number in order[:size]])
    batch = {name: each.to(loaded.device) for name, each in batch.items()}
    device = loaded.device.type
    training = model.training
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(seeded(0))
        if dtype != torch.float32:
            stack.enter_context(torch.autocast(device, dtype))
        model.train()
        loss = lesson.objective.of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    for weight in model.parameters():
        weight.grad = None
    model.train(training)
    return time.monotonic() - started


def _kept_bytes(loaded: LoadedModel) -> int:
    """What training keeps of each token: in its layers (28 numbers for each of their width,
    measured on SmolLM2 with adapters) and for the loss (the logits and their gradient)."""
    config = loaded.model.config.get_text_config()
    element_bytes = max(2, next(loaded.model.parameters()).element_size())
    kept = 30 * element_bytes * loaded.facts.hidden_size * loaded.facts.layers
    return kept + 12 * int(config.vocab_size)


def _weight_bytes(model: nn.Module) -> int:
    return sum(each.numel() * each.element_size() for each in model.parameters())


def _refuse_state(loaded: LoadedModel, settings: HealSettings, state_bytes: int) -> None:
    """Refuse gradients and averages that have no room in memory."""
    if state_bytes > (free := free_memory_bytes(loaded.device)):
        instead = (
            "start more processes, or choose --method lora"
            if sharded()
            else ("choose --method lora or qlora")
        )
        raise SettingsError(
            f"--method {settings.method} needs {state_bytes / 1e9:.1f} GB"
            f"{'' if sharded() else ' beside the model'}, and {free / 1e9:.1f} GB are free on "
            f"{loaded.device}: {instead}, or --method partial with fewer --layers"
        )


def _refuse_full_disk(
    loaded: LoadedModel, settings: HealSettings, state_bytes: int, folder: Path
) -> None:
    """Refuse checkpoints that have no room on the disk."""
    # The weights and two averages of each; the newest, the best, and one that is being written.
    kept = 3 * state_bytes + loaded.facts.weight_bytes
    if kept > (room := shutil.disk_usage(folder).free):
        raise SettingsError(
            f"checkpoints of --method {settings.method} take up to {kept / 1e9:.1f} GB, and "
            f"{room / 1e9:.1f} GB are free beside --out: choose another place, or --method lora"
        )


def _no_room(loaded: LoadedModel, settings: HealSettings, size: int) -> SettingsError:
    smaller = "a smaller --micro-batch-size, or leave it out" if size > 1 else "a shorter --context"
    return SettingsError(
        f"{size} sequences of {settings.context} tokens do not fit on {loaded.device} "
        f"({free_memory_bytes(loaded.device) / 1e9:.1f} GB free): give {smaller}, --method lora, "
        "--recompute, or --teacher-kept 64, with which the teacher does not stay in memory"
    )


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is no larger than `most`, at least 1."""
    return max(each for each in _divisors(number) if each <= max(1, most))


def _told(
    loaded: LoadedModel, model: nn.Module, lesson: Lesson, pace: Pace, seconds: float | None
) -> list[str]:
    rows, settings = lesson.rows, lesson.settings
    trained, whole = trainable(model), loaded.facts.parameters
    read = sum(len(each) for each in rows.trained)
    tokens = settings.steps * settings.batch_size * read / len(rows.trained)
    needed = None if seconds is None else settings.steps * pace.accumulate * seconds
    duration = "" if needed is None else f"; about {_duration(needed)}"
    lines = [
        f"heal: {settings.method} trains {trained:,} parameters ({trained / whole:.1%} of "
        f"{whole:,}), {_STATE_BYTES * trained / 1e9:.2g} GB of gradients and optimizer state",
        f"heal: {settings.steps} steps of {settings.batch_size} sequences "
        f"({pace.micro_batch_size} at a time), {tokens:,.0f} tokens, {tokens / read:.2g} times "
        f"through the text{duration}",
    ]
    if loaded.device.type == "cpu" and getattr(loaded.model, "is_quantized", False):
        lines.append(
            "heal: on a CPU a 4-bit base saves memory and costs time; --method lora trains the "
            "same matrices faster"
        )
    if needed is not None and needed > _LONG_SECONDS:
        lines.append(
            "heal: that is long for this machine: give fewer --steps, a smaller --batch-size or a "
            "shorter --context, or --preset quick"
        )
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
