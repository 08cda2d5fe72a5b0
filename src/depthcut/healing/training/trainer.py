"""transformers' Trainer with our losses; its checkpoints hold the trained weights alone."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import save_fsdp_optimizer  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer import SCHEDULER_NAME
from transformers.training_args import OptimizerNames

from depthcut.errors import SettingsError, nearest
from depthcut.healing.losses.objective import counting
from depthcut.healing.rows import collate
from depthcut.healing.training.lessons import Lesson, Pace
from depthcut.healing.training.sharding import (
    gathered,
    reduce_precisely,
    reshared,
    set_weight,
    settings_of,
    sharded,
)
from depthcut.model.loading import LoadedModel
from depthcut.model.ranks import all_ranks
from depthcut.settings import HealSettings

_WEIGHTS = "trained.safetensors"


class HealTrainer(Trainer):
    """Trains a model on a lesson: so many steps, each of as many sequences."""

    def __init__(self, lesson: Lesson, **arguments: Any) -> None:
        self._rows, self._objective = lesson.rows, lesson.objective
        super().__init__(
            train_dataset=_Course(lesson),
            data_collator=collate,
            compute_loss_func=_never,  # by it the Trainer knows that a sum is divided already
            **arguments,
        )
        reduce_precisely(self.accelerator)
        self._begun = time.monotonic()
        self._before: float | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(cast(_Course, self.train_dataset))

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
        """What is held out, shared out among the processes."""
        ranks, size = all_ranks(), self.args.per_device_train_batch_size
        numbers = [len(self._rows.trained) + each for each in range(len(self._rows.held_out))]
        own = numbers[ranks.rank :: ranks.count]
        sums = torch.zeros(3, dtype=torch.float64)
        self.model_wrapped.eval()
        for start in range(0, len(numbers[:: ranks.count]), size):
            taken = own[start : start + size]
            # A model that is shared out runs everywhere or nowhere.
            rows = [self._rows.row(number) for number in taken or numbers[:1] * sharded()]
            if not rows:
                continue
            batch = self._prepare_inputs(collate(rows))
            with torch.no_grad(), self.compute_loss_context_manager():
                judged = self._objective.judged(self.accelerator.unwrap_model(self.model), batch)
            count = counting(batch["labels"]).sum()
            sums += bool(taken) * torch.stack([*judged, count]).double().cpu()
        mixed, next_token, count = ranks.sum(sums).tolist()
        found = {"eval_loss": mixed / max(1, count), "eval_next_token": next_token / max(1, count)}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the seconds that were spent so far, before a kill and since."""
        if self._before is None:
            history = self.state.log_history
            self._before = history[-1].get("seconds", 0.0) if history else 0.0
        super().log({**logs, "seconds": self._before + time.monotonic() - self._begun}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained weights alone."""
        weights: dict[str, Tensor] = {}
        for name, weight in self.accelerator.unwrap_model(self.model).named_parameters():
            if weight.requires_grad:
                whole = gathered(weight)
                if self.args.should_save:
                    weights[name] = whole.cpu().contiguous()
        if self.args.should_save:
            folder = Path(cast(str, output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / _WEIGHTS)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not sharded():
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin  # the Trainer would write the model too
        model = reshared(cast(nn.Module, self.model))
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, model, output_dir)
        if self.args.should_save:
            scheduler = cast(Any, self.lr_scheduler).state_dict()
            torch.save(scheduler, Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        given = self.model if model is None else model
        load_trained(cast(nn.Module, given), Path(resume_from_checkpoint))


class _Course(Dataset[dict[str, Any]]):
    """The sequences of all steps in order: each pass over them shuffled anew by the seed."""

    def __init__(self, lesson: Lesson) -> None:
        settings, count = lesson.settings, len(lesson.rows.trained)
        needed = settings.steps * settings.batch_size
        generator = torch.Generator().manual_seed(settings.seed)
        passes = [torch.randperm(count, generator=generator) for _ in range(-(-needed // count))]
        self._rows, self._order = lesson.rows, torch.cat(passes)[:needed]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._rows.row(int(self._order[place]))


def load_trained(model: nn.Module, folder: Path) -> None:
    """Put the trained weights of a checkpoint into the model."""
    named = dict(model.named_parameters())
    for name, weight in load_file(folder / _WEIGHTS).items():
        set_weight(named[name], weight)


@dataclass
class _Arguments(TrainingArguments):
    """Trains where the model is: no DataParallel over what other GPUs there are."""

    place: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        _ = super()._setup_devices  # sets up accelerate's state
        self._n_gpu = min(1, self._n_gpu)
        return torch.device(self.place)


def arguments(
    lesson: Lesson,
    pace: Pace,
    *,
    device: torch.device,
    autocast: torch.dtype,
    folder: Path,
    eval_on_start: bool,
) -> TrainingArguments:
    """How the Trainer trains a lesson."""
    settings = lesson.settings
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
        use_cpu=device.type == "cpu",
        # Else a model that is shared out keeps whole gradients between the passes of a step.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": sharded()}},
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
def training_on(loaded: LoadedModel, autocast: torch.dtype, logs: Path) -> Iterator[None]:
    """A context in which accelerate takes the model's device, whatever a launcher said."""
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(autocast, "no")
    wanted = {
        "ACCELERATE_TORCH_DEVICE": str(loaded.device),  # else the first GPU
        "ACCELERATE_MIXED_PRECISION": precision,
        "TENSORBOARD_LOGGING_DIR": os.environ.get("TENSORBOARD_LOGGING_DIR", str(logs)),
        **settings_of(loaded),
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ |= wanted
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def refuse_unknown(settings: HealSettings) -> None:
    """Refuse names that the Trainer does not know.

    Raises:
        SettingsError: Such an optimizer or tracker, or one that is not installed.
    """
    optimizers = [each.value for each in OptimizerNames]
    if settings.optimizer not in optimizers:
        raise SettingsError(
            f"--optimizer {settings.optimizer}: the Trainer has no such optimizer"
            f"{nearest(settings.optimizer, optimizers)}"
        )
    trackers = [] if settings.report_to == "none" else [settings.report_to]
    try:
        for tracker in get_reporting_integration_callbacks(trackers):  # type: ignore[no-untyped-call]
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise SettingsError(f"--report-to {settings.report_to}: {error}") from error


def _never(*_: Any, **__: Any) -> Tensor:
    raise TypeError("the loss is that of compute_loss")
