"""What happens on the way of a training: when to judge, to save and to stop; what people see."""

import math
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from depthcut.errors import SettingsError
from depthcut.healing.training.checkpoints import Checkpoints
from depthcut.healing.training.history import best_step, enough, judgements
from depthcut.model.ranks import all_ranks
from depthcut.progress import Advance
from depthcut.settings import HealSettings

_MOST_LOST_SECONDS = 600


class Watch(TrainerCallback):
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
        self._saved = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step:
            self._advance(self._step_tokens * state.global_step, f"from step {state.global_step}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step, last = state.global_step, state.global_step >= self._settings.steps
        judging = step % _judge_every(self._settings) == 0 or last
        every = self._settings.save_every or _judge_every(self._settings)
        control.should_evaluate = judging and self._judges
        control.should_save = (
            step % every == 0 or (judging and self._judges) or last or self._long_ago()
        )

    def _long_ago(self) -> bool:
        """Whether so much was done since the last checkpoint that it must not be lost."""
        seconds = all_ranks().of_first(time.monotonic() - self._saved)
        return seconds > _MOST_LOST_SECONDS

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if enough(judgements(state.log_history), self._settings):
            control.should_training_stop = True
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._saved = time.monotonic()
        all_ranks().everywhere(None)  # each has saved its own generator
        if args.should_save:
            best = best_step(judgements(state.log_history))
            self._checkpoints.finish(state.global_step, best=best)

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
            self._checkpoints.give_up()
            raise SettingsError(
                f"the loss is {loss} at step {state.global_step}: lower --learning-rate, or train "
                "in another --dtype"
            )
        self._recent = [*self._recent[-9:], loss]
        note = f"step {state.global_step}, loss {sum(self._recent) / len(self._recent):.3f}"
        self._advance(self._step_tokens, note)


def _judge_every(settings: HealSettings) -> int:
    """Steps between two judgements."""
    return settings.eval_every or max(1, settings.steps // 10)
