"""Low-rank adapters: put on a model for a while, and what they would add to its weights."""

import contextlib
import re
import warnings
from collections.abc import Iterator
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from depthcut.errors import ArchitectureError, MissingExtraError
from depthcut.settings import HealSettings

try:
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise MissingExtraError("peft", "heal", "healing") from error

ADAPTER = "default"


@contextlib.contextmanager
def adapted(model: PreTrainedModel, settings: HealSettings) -> Iterator[PeftModel]:
    """The model with fresh LoRA matrices (arXiv:2106.09685) on all its linear layers.

    The head is left out, as it may be tied to the embeddings. Only the new matrices train;
    they are float32 whatever the weights are, so that small steps are not rounded away. At the
    end the model is as it was before: own modules, same weights, modes and settings. Draws the
    matrices from torch's global generator.

    Raises:
        ArchitectureError: The model has no linear layer that peft knows.
    """
    trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
    training = [module for module in model.modules() if module.training]
    cached, recomputing = model.config.use_cache, _recomputes(model)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),  # peft divides it by r, whole or not
        lora_dropout=settings.dropout,
        target_modules="all-linear",
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what it settles by itself
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
    except ValueError as error:
        raise ArchitectureError(f"no LoRA on a {model.config.model_type} model: {error}") from error
    try:
        yield wrapped
    finally:
        wrapped.unload()
        for name, weight in model.named_parameters():
            weight.requires_grad_(trainable[name])
        model.train(False)
        for module in training:
            module.training = True
        model.config.use_cache = cached
        if _recomputes(model) and not recomputing:
            disable = "activation_checkpointing_disable"  # renamed within transformers 5
            disable = disable if hasattr(model, disable) else "gradient_checkpointing_disable"
            getattr(model, disable)()


def weight_deltas(wrapped: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """What the adapters add to the tensors of the model's checkpoint: alpha / rank * B @ A.

    transformers holds some weights otherwise than checkpoints do (experts stacked in one
    tensor, modules renamed); the sums are split and named as it would save the weights.

    Yields:
        A tensor's name, and the sum to add, float32 on the CPU, in the tensor's own shape.
    """
    model = cast(PreTrainedModel, wrapped.get_base_model())
    for _, layer in groupby(_adapters(wrapped), key=lambda named: _layer(named[0])):
        with torch.no_grad():
            deltas = {
                name: module.get_delta_weight(ADAPTER).float().cpu() for name, module in layer
            }
            yield from revert_weight_conversion(model, deltas).items()


def _adapters(wrapped: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            path = name.replace(".base_layer", "")  # adapters of one module's parameters nest
            yield f"{path}.{getattr(module, 'parameter_name', 'weight')}", module


def _recomputes(model: PreTrainedModel) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def _layer(name: str) -> str:
    """The name up to its first number: what belongs to one layer is converted together."""
    found = re.match(r".*?\.\d+\.", name)
    return found[0] if found else name
