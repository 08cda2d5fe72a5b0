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

from depthcut.architectures.sublayers import part_modules
from depthcut.errors import ArchitectureError, MissingExtraError
from depthcut.healing.weights.restoring import as_before
from depthcut.healing.weights.targets import Targets
from depthcut.model.loading import LoadedModel
from depthcut.settings import HealSettings

try:
    from peft import LoraConfig, PeftModel, get_peft_model
    from peft.tuners.lora import LoraLayer
except ImportError as error:
    raise MissingExtraError("peft", "heal", "healing") from error

ADAPTER = "default"


@contextlib.contextmanager
def adapted(
    loaded: LoadedModel, settings: HealSettings, chosen: Targets | None
) -> Iterator[PeftModel]:
    """The model with fresh LoRA matrices (arXiv:2106.09685) on the linear layers of some layers.

    None chooses all linear layers.

    The head is left out, as it may be tied to the embeddings. Only the new matrices train;
    they are float32 whatever the weights are, so that small steps are not rounded away. At the
    end the model is as it was before: own modules, same weights, modes and settings. Draws the
    matrices from torch's global generator.

    Raises:
        ArchitectureError: The model has no linear layer that peft knows.
    """
    model = loaded.model
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),  # peft divides it by r, whole or not
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        exclude_modules=_others(loaded, settings, chosen),
    )
    with as_before(model), _differentiable(model):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on what it settles by itself
                wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ArchitectureError(
                f"no LoRA on a {model.config.model_type} model: {error}"
            ) from error
        try:
            yield wrapped
        finally:
            wrapped.unload()


def weight_deltas(wrapped: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """What the adapters add to the tensors of the model's checkpoint: alpha / rank * B @ A.

    transformers holds some weights otherwise than checkpoints do (experts stacked in one
    tensor, modules renamed); the sums are split and named as it would save the weights.

    Yields:
        A tensor's name, and the sum to add, float32 on the CPU, in the tensor's own shape.
    """
    model = cast(PreTrainedModel, wrapped.get_base_model())
    for _, layer in groupby(_adapters(wrapped), key=lambda named: layer_of(named[0])):
        with torch.no_grad():
            deltas = {
                name: module.get_delta_weight(ADAPTER).float().cpu() for name, module in layer
            }
            yield from revert_weight_conversion(model, deltas).items()


@contextlib.contextmanager
def _differentiable(model: PreTrainedModel) -> Iterator[None]:
    """A context in which 4-bit layers give gradients on a CPU.

    bitsandbytes packs their weights for a faster product, whose gradient it does not know, at the
    first pass in eval mode; later passes in training mode would silently stop the gradient there.
    """
    flag, packed = "support_avx512bf16_for_cpu", "packing_format_for_cpu"
    modules = [module for module in model.modules() if getattr(module, flag, False)]
    for module in modules:
        setattr(module, flag, False)
        if getattr(getattr(module.weight, "quant_state", None), packed, False):
            module.state_dict()  # unpacks them
    try:
        yield
    finally:
        for module in modules:
            setattr(module, flag, True)


def _others(loaded: LoadedModel, settings: HealSettings, chosen: Targets | None) -> str | None:
    """A pattern of the modules that no adapter is put on; None: there is none."""
    wanted = range(len(loaded.layers)) if chosen is None else chosen.layers
    names = {id(module): name for name, module in loaded.model.named_modules()}
    others = []
    for number, layer in enumerate(loaded.layers):
        if number not in wanted:
            others.append(names[id(layer)])
        elif settings.modules != "all":
            kept = part_modules(name for name, _ in layer.named_children())[settings.modules]
            others += [
                f"{names[id(layer)]}.{name}" for name, _ in layer.named_children() if name != kept
            ]
    return rf"({'|'.join(map(re.escape, others))})(\..*)?" if others else None


def _adapters(wrapped: PeftModel) -> Iterator[tuple[str, Any]]:
    for name, module in wrapped.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            path = name.replace(".base_layer", "")  # adapters of one module's parameters nest
            yield f"{path}.{getattr(module, 'parameter_name', 'weight')}", module


def layer_of(name: str) -> str:
    """A weight's name up to its first number: what belongs to one layer is converted together."""
    found = re.match(r".*?\.\d+\.", name)
    return found[0] if found else name
