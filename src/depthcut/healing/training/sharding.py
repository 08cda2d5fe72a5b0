"""A model shared out among GPUs while it trains (FSDP2 of torch, by accelerate), whole behind."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.launched import launched
from depthcut.model.loading import LoadedModel
from depthcut.settings import HealSettings, LoadSettings


def sharded() -> bool:
    """Whether the launcher was told to share models out (`accelerate launch --use_fsdp`)."""
    return launched().count > 1 and _told("FSDP")


def refuse_launcher(settings: HealSettings, load: LoadSettings, *, in_memory: bool) -> None:
    """Refuse a launcher's settings that healing is not ready for, before anything is loaded.

    Raises:
        SettingsError: DeepSpeed; a 4-bit model, or one in memory, that should be shared out.
    """
    if _told("DEEPSPEED"):
        raise SettingsError(
            "accelerate was told to use DeepSpeed: launch with --multi_gpu, or with --use_fsdp "
            "where a GPU has no room for the whole model"
        )
    if sharded() and (settings.method == "qlora" or load.load_in_4bit):
        raise SettingsError(
            "a 4-bit model is not shared out among GPUs: launch with --multi_gpu instead of "
            "--use_fsdp, or choose --method lora"
        )
    if sharded() and in_memory:
        raise SettingsError(
            "a model in memory is not shared out among GPUs: give its checkpoint's folder"
        )


def settings_of(loaded: LoadedModel) -> dict[str, str]:
    """What accelerate reads from the environment: each layer is gathered when it runs."""
    if not sharded():
        return {}
    kinds = {type(layer).__name__ for layer in loaded.layers}
    return {
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": ",".join(sorted(kinds)),
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",  # the whole weights stay where they are
        "FSDP_ACTIVATION_CHECKPOINTING": "false",  # --recompute is transformers' own
    }


def reduce_precisely(accelerator: Any) -> None:
    """Let gradients be added up in float32, whatever the products are computed in."""
    if not sharded():
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(
            plugin.mixed_precision_policy, reduce_dtype=torch.float32
        )


@contextlib.contextmanager
def whole_again(model: nn.Module) -> Iterator[None]:
    """A context after which the model has the parameters that it has now, whole, as they were.

    What was learned is in the checkpoints.
    """
    before = [(module, dict(module._parameters)) for module in model.modules()]
    try:
        yield
    finally:
        for module, its in before if sharded() else ():
            module._parameters.update(its)


def set_weight(weight: Tensor, value: Tensor) -> None:
    """Give a parameter a value; one that is shared out takes its part of it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        if isinstance(weight, DTensor):
            value = distribute_tensor(
                value.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None
            )
        weight.copy_(value)


def _told(name: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1")
