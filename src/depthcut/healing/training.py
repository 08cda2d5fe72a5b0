"""Training of what is trainable in a model: next-token loss, transformers' Trainer."""

import contextlib
import math
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch
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

from depthcut.errors import SettingsError
from depthcut.progress import Advance, progress
from depthcut.settings import HealSettings

IGNORED = -100
"""The label that torch's cross entropy leaves out."""
RECORDED_LOSSES = 100
"""A record keeps at most so many losses, each the mean over equally many steps."""


@dataclass(frozen=True)
class Training:
    """What a training did."""

    losses: tuple[tuple[int, float], ...]
    """(step, mean next-token loss in nats over the steps since the last entry)."""
    tokens: int
    """Tokens that went through the model, padding not among them."""


def train(
    model: nn.Module,
    sequences: Sequence[Tensor],
    settings: HealSettings,
    *,
    device: torch.device,
    checkpoint_activations: bool = False,
) -> Training:
    """Train the parameters of `model` that require a gradient, in place.

    AdamW; the learning rate rises over `warmup_steps` and falls to zero along a cosine. The
    sequences are shuffled anew in each pass over them, by the seed, and repeated until the
    steps are done. The loss of a step is the mean over all its tokens, however they are spread
    over the forward passes. On one CPU the same seed gives the same weights.

    Args:
        model: On `device` already.
        sequences: Token ids, 1-D int64, of any lengths.
        checkpoint_activations: Recompute the activations instead of keeping them.

    Raises:
        SettingsError: The loss ceased to be a finite number.
    """
    with (
        tempfile.TemporaryDirectory(prefix="depthcut-heal-") as folder,
        _trainer_device(device),
        progress("heal", settings.steps * _step_tokens(sequences, settings)) as advance,
    ):
        watch = _Watch(advance, _step_tokens(sequences, settings))
        trainer = Trainer(
            model=model,
            args=_arguments(settings, device, folder, checkpoint_activations),
            train_dataset=[{"input_ids": ids} for ids in sequences],
            data_collator=_collate,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        tokens = trainer.state.num_input_tokens_seen
    return Training(losses=_thinned(watch.losses, RECORDED_LOSSES), tokens=int(tokens))


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
    settings: HealSettings, device: torch.device, folder: str, checkpoint_activations: bool
) -> TrainingArguments:
    return _Arguments(
        place=str(device),
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        weight_decay=0.0,
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        **_recomputation(checkpoint_activations),
    )


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


def _collate(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    ids = [row["input_ids"] for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    padded = pad_sequence(ids, batch_first=True, padding_value=0)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return {
        "input_ids": padded,
        "attention_mask": mask.long(),
        "labels": padded.masked_fill(~mask, IGNORED),
    }


def _step_tokens(sequences: Sequence[Tensor], settings: HealSettings) -> float:
    mean = sum(len(ids) for ids in sequences) / len(sequences)
    return mean * settings.batch_size * settings.accumulate


class _Watch(TrainerCallback):
    """Shows the loss of each step, keeps it, and stops where it is no number."""

    def __init__(self, advance: Advance, step_tokens: float) -> None:
        self.losses: list[tuple[int, float]] = []
        self._advance = advance
        self._step_tokens = step_tokens

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
        self.losses.append((state.global_step, loss))
        recent = [value for _, value in self.losses[-10:]]
        note = f"step {state.global_step}, loss {sum(recent) / len(recent):.3f}"
        self._advance(self._step_tokens, note)


def _thinned(losses: Sequence[tuple[int, float]], most: int) -> tuple[tuple[int, float], ...]:
    size = math.ceil(len(losses) / most) or 1
    groups = [losses[start : start + size] for start in range(0, len(losses), size)]
    return tuple((group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups)
