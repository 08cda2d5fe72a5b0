"""A model's modes, which training changes and leaves changed."""

import contextlib
from collections.abc import Iterator

from transformers import PreTrainedModel


@contextlib.contextmanager
def as_before(model: PreTrainedModel) -> Iterator[None]:
    """A context after which the model's modes and settings are as before; its weights are not."""
    trainable = {name: weight.requires_grad for name, weight in model.named_parameters()}
    training = [module for module in model.modules() if module.training]
    cached, recomputing = model.config.use_cache, _recomputes(model)
    try:
        yield
    finally:
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


def _recomputes(model: PreTrainedModel) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
