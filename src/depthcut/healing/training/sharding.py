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
from depthcut.model.devices import choose_device
from depthcut.model.loading import LoadedModel
from depthcut.settings import HealSettings, LoadSettings

PLACES = ("cuda",)
"""Kinds of devices that accelerate shares models out among."""
_OPTIMIZERS = ("adamw_torch", "sgd")
"""Beginnings of the names of those that work on shares."""


def sharded() -> bool:
    """Whether the launcher was told to share models out (`accelerate launch --use_fsdp`)."""
    return launched().count > 1 and _told("FSDP")


def heed_launcher(settings: HealSettings, load: LoadSettings, *, in_memory: bool) -> None:
    """Before anything is loaded: refuse what healing is not ready for, and let models be loaded
    whole by each process, whatever the launcher said.

    Raises:
        SettingsError: DeepSpeed; one process, CPUs, a 4-bit model, one in memory, or an optimizer
            that does not know shares.
    """
    if _told("DEEPSPEED"):
        raise SettingsError(
            "accelerate was told to use DeepSpeed: launch with --multi_gpu, or with --use_fsdp "
            "where a GPU has no room for the whole model"
        )
    if not _told("FSDP"):
        return
    instead = "launch with --multi_gpu instead of --use_fsdp"
    if not sharded():
        raise SettingsError(
            "one process has nobody to share the model out to (--use_fsdp): start it without "
            "accelerate launch, or with several --num_processes"
        )
    device = choose_device(load.device)
    if device is None or device.type not in PLACES:
        raise SettingsError(f"models are shared out among GPUs, not on {device}: {instead}")
    if settings.method == "qlora" or load.load_in_4bit:
        raise SettingsError(
            f"a 4-bit model is not shared out among GPUs: {instead}, or choose --method lora"
        )
    if in_memory:
        raise SettingsError(
            "a model in memory is not shared out among GPUs: give its checkpoint's folder"
        )
    if not settings.optimizer.startswith(_OPTIMIZERS):
        raise SettingsError(
            f"--optimizer {settings.optimizer} does not work on a model that is shared out among "
            f"GPUs: choose {' or '.join(_OPTIMIZERS)}, or {instead}"
        )
    # The second lets the processes be joined over gloo too, which gathers in main memory.
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"


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
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_IGNORED_MODULES": "",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",  # --recompute is transformers' own
        "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
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

    What was learned is in the checkpoints. Buffers are not shared out: accelerate leaves those
    alone that are not saved, so none are saved meanwhile.
    """
    modules = [*model.modules()] if sharded() else []
    before = [
        (dict(module._parameters), dict(module._buffers), module._non_persistent_buffers_set)
        for module in modules
    ]
    for module in modules:
        module._non_persistent_buffers_set = set(module._buffers)
    try:
        yield
    finally:
        for module, (parameters, buffers, unsaved) in zip(modules, before, strict=True):
            module._parameters.update(parameters)
            module._buffers.update(buffers)
            module._non_persistent_buffers_set = unsaved


def reshared(model: nn.Module) -> nn.Module:
    """The same model: a forward pass that no backward pass followed has left some of it whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules() if sharded() else ():
        if isinstance(module, FSDPModule):
            module.reshard()
    return model


def gathered(weight: Tensor) -> Tensor:
    """A parameter whole; where it is shared out all processes have to ask."""
    from torch.distributed.tensor import DTensor

    weight = weight.detach()
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


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
