"""Training of what is trainable in a model, by transformers' Trainer."""

import contextlib
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from depthcut.errors import SettingsError
from depthcut.healing.checkpoints import Checkpoints
from depthcut.healing.objective import IGNORED, Objective, counting
from depthcut.launched import launched
from depthcut.progress import Advance, progress
from depthcut.records import HealJudgement
from depthcut.settings import HealSettings

RECORDED_LOSSES = 100
"""A record keeps at most so many losses, each the mean over equally many steps."""
_WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class Rows:
    """What is trained on, and what is held out to judge."""

    trained: tuple[Tensor, ...]
    """Token ids, 1-D int64, of any lengths. They have the numbers 0, 1, ..."""
    held_out: tuple[Tensor, ...] = ()
    """They have the numbers behind those."""
    answers: tuple[Tensor, ...] = ()
    """Of both in order: which tokens are to be learned, bool; empty: all."""

    def row(self, number: int) -> dict[str, Any]:
        """A sequence with its number."""
        ids = (*self.trained, *self.held_out)[number]
        learned = self.answers[number] if self.answers else torch.ones_like(ids, dtype=torch.bool)
        return {"input_ids": ids, "learned": learned, "number": number}


@dataclass(frozen=True)
class Lesson:
    """What a model is to learn."""

    rows: Rows
    objective: Objective
    settings: HealSettings


@dataclass(frozen=True)
class Pace:
    """How a step is made of forward passes."""

    micro_batch_size: int
    """Sequences per forward pass on each device."""
    accumulate: int
    """Forward passes per step on each device."""
    recompute: bool = False
    """Activations are computed again instead of kept."""


@dataclass(frozen=True)
class Training:
    """What a training did."""

    losses: tuple[tuple[int, float], ...]
    """(step, mean loss over the steps since the last entry)."""
    tokens: int
    """Tokens that went through the model, padding not among them."""
    judgements: tuple[HealJudgement, ...]
    """On what was held out; the first before any step."""
    best_step: int
    """After which the weights are that are there now."""
    stopped_early: bool
    seconds: float
    """Of all its processes, one after another."""


def train(
    model: nn.Module,
    lesson: Lesson,
    pace: Pace,
    *,
    device: torch.device,
    autocast: torch.dtype,
    checkpoints: Checkpoints,
) -> Training:
    """Train the parameters of `model` that require a gradient, in place.

    The learning rate rises over `warmup_steps` and falls as `schedule` says. The sequences are
    shuffled anew in each pass over them, by the seed, and repeated until the steps are done. The
    loss of a step is the mean over all its tokens that count, however they are spread over forward
    passes and devices. At the end stand the weights that did best on what was held out.

    Where `checkpoints` hold a training that was begun, it goes on with the same steps: optimizer,
    order of the text and random numbers are as they were. On one CPU the same seed gives the same
    weights, with and without a kill between.

    Args:
        model: On `device` already.
        lesson: The text, what is made small, steps and rates.
        pace: Sequences per forward pass.
        device: Where the model is.
        autocast: In which products are computed; float32: as the weights are.
        checkpoints: Where it keeps how far it is.

    Raises:
        SettingsError: The loss ceased to be a finite number, or memory ran out.
    """
    settings = lesson.settings
    begun = checkpoints.last()
    state = TrainerState.load_from_json(str(begun / TRAINER_STATE_NAME)) if begun else None
    if begun is not None and state is not None and _done(state, settings):
        load_trained(model, begun)
    else:
        state = _trained(
            model, lesson, pace, device=device, autocast=autocast, checkpoints=checkpoints
        )
    history = state.log_history
    judgements = _judgements(history)
    best = _best(judgements)
    if best is not None and best != state.global_step:
        load_trained(model, checkpoints.at(best))
    return Training(
        losses=_thinned(_losses(history), RECORDED_LOSSES),
        tokens=int(state.num_input_tokens_seen),
        judgements=judgements,
        best_step=state.global_step if best is None else best,
        stopped_early=state.global_step < settings.steps,
        seconds=history[-1]["seconds"] if history else 0.0,
    )


def _trained(
    model: nn.Module,
    lesson: Lesson,
    pace: Pace,
    *,
    device: torch.device,
    autocast: torch.dtype,
    checkpoints: Checkpoints,
) -> TrainerState:
    """Train from the last checkpoint on."""
    rows, settings, begun = lesson.rows, lesson.settings, checkpoints.last()
    each = _step_tokens(rows.trained, settings)
    with _trainer_device(device), progress("heal", settings.steps * each) as advance:
        trainer = _Trainer(
            lesson,
            model=model,
            args=_arguments(
                settings,
                pace,
                device=device,
                autocast=autocast,
                folder=checkpoints.folder,
                eval_on_start=begun is None and bool(rows.held_out),
            ),
            callbacks=[_Watch(advance, each, settings, checkpoints, judges=bool(rows.held_out))],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    return trainer.state


def _done(state: TrainerState, settings: HealSettings) -> bool:
    enough = _enough(_judgements(state.log_history), settings)
    return enough or state.global_step >= settings.steps


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put the trained weights of a checkpoint into the model."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in load_file(folder / _WEIGHTS).items():
            named[name].copy_(weight)


def judge_every(settings: HealSettings) -> int:
    """Steps between two judgements."""
    return settings.eval_every or max(1, settings.steps // 10)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Rows as a batch, padded on the right."""
    ids = [row["input_ids"] for row in rows]
    lengths = torch.tensor([len(each) for each in ids])
    padded = pad_sequence(ids, batch_first=True, padding_value=0)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    learned = pad_sequence([row["learned"] for row in rows], batch_first=True, padding_value=False)
    labels = padded.masked_fill(~learned, IGNORED)
    labels[:, 0] = IGNORED  # nothing is before it
    return {
        "input_ids": padded,
        "attention_mask": mask.long(),
        "labels": labels,
        "number": torch.tensor([row["number"] for row in rows]),
    }


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All random generators at `seed`; afterwards they go on as if nothing had been drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class _Trainer(Trainer):
    """transformers' own, with our loss; its checkpoints hold the trained weights alone."""

    def __init__(self, lesson: Lesson, **arguments: Any) -> None:
        self._rows, self._objective = lesson.rows, lesson.objective
        count = len(self._rows.trained)
        super().__init__(
            train_dataset=[self._rows.row(number) for number in range(count)],
            data_collator=collate,
            compute_loss_func=_never,  # by it the Trainer knows that a sum is divided already
            **arguments,
        )
        self._begun = time.monotonic()
        self._before: float | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean over the tokens that count, of all forward passes of the step."""
        total = self._objective.of(model, inputs)
        count = (
            counting(inputs["labels"]).sum() if num_items_in_batch is None else num_items_in_batch
        )
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            total = total * self.accelerator.num_processes
        loss = total / max(1, int(count))
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """What is held out, judged by every process alike."""
        held_out = [
            self._rows.row(len(self._rows.trained) + number)
            for number in range(len(self._rows.held_out))
        ]
        size = self.args.per_device_train_batch_size
        mixed = own = count = 0.0
        self.model_wrapped.eval()
        for start in range(0, len(held_out), size):
            batch = self._prepare_inputs(collate(held_out[start : start + size]))
            with torch.no_grad(), self.compute_loss_context_manager():
                sums = self._objective.judged(self.model_wrapped, batch)
            mixed, own = mixed + sums[0].item(), own + sums[1].item()
            count += int(counting(batch["labels"]).sum())
        found = {"eval_loss": mixed / max(1, count), "eval_next_token": own / max(1, count)}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the seconds that were spent so far, before a kill and since."""
        if self._before is None:
            history = self.state.log_history
            self._before = history[-1].get("seconds", 0.0) if history else 0.0
        super().log({**logs, "seconds": self._before + time.monotonic() - self._begun}, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if output_dir is None or not self.args.should_save:
            return
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = {
            name: weight.detach().contiguous()
            for name, weight in self.accelerator.unwrap_model(self.model).named_parameters()
            if weight.requires_grad
        }
        save_file(weights, Path(output_dir, _WEIGHTS))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        given = self.model if model is None else model
        load_trained(cast(nn.Module, given), Path(resume_from_checkpoint))


def _never(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError


@dataclass
class _Arguments(TrainingArguments):
    """Trains where the model is: no DataParallel over what other GPUs there are."""

    place: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        _ = super()._setup_devices  # sets up accelerate's state
        self._n_gpu = min(1, self._n_gpu)
        return torch.device(self.place)


def _arguments(
    settings: HealSettings,
    pace: Pace,
    *,
    device: torch.device,
    autocast: torch.dtype,
    folder: Path,
    eval_on_start: bool,
) -> TrainingArguments:
    schedule = settings.schedule
    return _Arguments(
        place=str(device),
        output_dir=str(folder.absolute()),
        max_steps=settings.steps,
        per_device_train_batch_size=pace.micro_batch_size,
        gradient_accumulation_steps=pace.accumulate,
        learning_rate=peak_learning_rate(settings),
        lr_scheduler_type="constant_with_warmup" if schedule == "constant" else schedule,
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        optim=settings.optimizer,
        bf16=autocast == torch.bfloat16,
        fp16=autocast == torch.float16,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # _Watch says when
        eval_on_start=eval_on_start,
        report_to=settings.report_to,
        disable_tqdm=True,
        seed=settings.seed,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False if launched().count > 1 else None,
        use_cpu=device.type == "cpu",
        **_recomputation(pace.recompute),
    )


def peak_learning_rate(settings: HealSettings) -> float:
    """The settings' own, or what suits the method."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return 1e-3 if settings.method in ("lora", "qlora") else 2e-4


def _recomputation(asked: bool) -> dict[str, Any]:
    """transformers 5 renamed the option on its way."""
    if not asked:
        return {}
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing"
    name = name if name in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


@contextlib.contextmanager
def _trainer_device(device: torch.device) -> Iterator[None]:
    """accelerate takes the first GPU unless this variable names another."""
    name = "ACCELERATE_TORCH_DEVICE"
    before = os.environ.get(name)
    os.environ[name] = str(device)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _step_tokens(sequences: Sequence[Tensor], settings: HealSettings) -> float:
    return sum(len(ids) for ids in sequences) / len(sequences) * settings.batch_size


class _Watch(TrainerCallback):
    """Shows the loss, says when to judge, to save and to stop, and marks what was saved whole."""

    def __init__(
        self,
        advance: Advance,
        step_tokens: float,
        settings: HealSettings,
        checkpoints: Checkpoints,
        *,
        judges: bool,
    ) -> None:
        self._advance, self._step_tokens = advance, step_tokens
        self._settings, self._checkpoints, self._judges = settings, checkpoints, judges
        self._recent: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step:
            self._advance(self._step_tokens * state.global_step, f"from step {state.global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, last = state.global_step, state.global_step >= self._settings.steps
        judging = step % judge_every(self._settings) == 0 or last
        every = self._settings.save_every or judge_every(self._settings)
        control.should_evaluate = judging and self._judges
        control.should_save = step % every == 0 or (judging and self._judges) or last

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if _enough(_judgements(state.log_history), self._settings):
            control.should_training_stop = True
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if args.should_save:
            self._checkpoints.finish(state.global_step, best=_best(_judgements(state.log_history)))

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            raise SettingsError(
                f"the loss is {loss} at step {state.global_step}: lower --learning-rate, or train "
                "in another --dtype"
            )
        self._recent = [*self._recent[-9:], loss]
        note = f"step {state.global_step}, loss {sum(self._recent) / len(self._recent):.3f}"
        self._advance(self._step_tokens, note)


def _losses(history: Sequence[Mapping[str, float]]) -> list[tuple[int, float]]:
    return [(int(each["step"]), float(each["loss"])) for each in history if "loss" in each]


def _judgements(history: Sequence[Mapping[str, float]]) -> tuple[HealJudgement, ...]:
    return tuple(
        HealJudgement(
            step=int(each["step"]),
            loss=float(each["eval_loss"]),
            next_token=float(each["eval_next_token"]),
        )
        for each in history
        if "eval_loss" in each
    )


def _best(judgements: Sequence[HealJudgement]) -> int | None:
    """The step of least loss, of those after which there was a checkpoint."""
    later = [each for each in judgements if each.step]
    return min(later, key=lambda each: each.loss).step if later else None


def _enough(judgements: Sequence[HealJudgement], settings: HealSettings) -> bool:
    """Whether as many judgements as patience allows came out no better than the best."""
    best = _best(judgements)
    since = [each for each in judgements if best is not None and each.step > best]
    return bool(settings.patience) and len(since) >= settings.patience


def _thinned(losses: Sequence[tuple[int, float]], most: int) -> tuple[tuple[int, float], ...]:
    size = math.ceil(len(losses) / most) or 1
    groups = [losses[start : start + size] for start in range(0, len(losses), size)]
    return tuple((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups)
