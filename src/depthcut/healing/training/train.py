"""Training of what is trainable in a model, by transformers' Trainer."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from depthcut.errors import SettingsError
from depthcut.healing.training.checkpoints import Checkpoints
from depthcut.healing.training.history import best_step, enough, judgements, losses, thinned
from depthcut.healing.training.lessons import Lesson, Pace
from depthcut.healing.training.sharding import sharded, whole_again
from depthcut.healing.training.trainer import HealTrainer, arguments, load_trained, training_on
from depthcut.healing.training.watching import Watch
from depthcut.model.loading import LoadedModel
from depthcut.model.memory import keeping_freed
from depthcut.progress import progress
from depthcut.records import HealJudgement
from depthcut.settings import HealSettings

RECORDED_LOSSES = 100
"""A record keeps at most so many losses, each the mean over equally many steps."""


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
    loaded: LoadedModel,
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
        model: As it is run.
        lesson: The text, what is made small, steps and rates.
        pace: Sequences per forward pass.
        loaded: What is trained; where it runs.
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
            model, lesson, pace, loaded=loaded, autocast=autocast, checkpoints=checkpoints
        )
    history = state.log_history
    judged = judgements(history)
    best = best_step(judged)
    last = state.global_step if best is None else best
    if last != state.global_step or sharded():
        load_trained(model, checkpoints.at(last))
    return Training(
        losses=thinned(losses(history), RECORDED_LOSSES),
        tokens=int(state.num_input_tokens_seen),
        judgements=judged,
        best_step=last,
        stopped_early=state.global_step < settings.steps,
        seconds=history[-1]["seconds"] if history else 0.0,
    )


def _trained(
    model: nn.Module,
    lesson: Lesson,
    pace: Pace,
    *,
    loaded: LoadedModel,
    autocast: torch.dtype,
    checkpoints: Checkpoints,
) -> TrainerState:
    """Train from the last checkpoint on."""
    rows, settings, begun = lesson.rows, lesson.settings, checkpoints.last()
    device = loaded.device
    each = _step_tokens(rows.trained, settings)
    logs = checkpoints.folder.with_suffix(".logs")
    with (
        training_on(loaded, autocast, logs),
        whole_again(model),
        keeping_freed(device),
        progress("heal", settings.steps * each) as advance,
    ):
        trainer = HealTrainer(
            lesson,
            model=model,
            args=arguments(
                lesson,
                pace,
                device=device,
                autocast=autocast,
                folder=checkpoints.folder,
                eval_on_start=begun is None and bool(rows.held_out),
            ),
            callbacks=[Watch(advance, each, settings, checkpoints, judges=bool(rows.held_out))],
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train(resume_from_checkpoint=str(begun) if begun else None)
        except torch.OutOfMemoryError as error:
            raise SettingsError(
                f"memory ran out on {device}: give a smaller --micro-batch-size or a shorter "
                "--context, --recompute, --method lora, or --teacher-kept 64"
            ) from error
        finally:  # accelerate wraps a model's forward, and marks it
            trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            vars(model).pop("_is_accelerate_prepared", None)
    return trainer.state


def _done(state: TrainerState, settings: HealSettings) -> bool:
    done = state.global_step >= settings.steps
    return done or enough(judgements(state.log_history), settings)


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


def _step_tokens(sequences: Sequence[Tensor], settings: HealSettings) -> float:
    return sum(len(ids) for ids in sequences) / len(sequences) * settings.batch_size
