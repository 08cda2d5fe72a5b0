"""Plans by hand, and the oracle of a cut: the whole model with layers that pass their input on."""

import copy
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.model.loading import find_layers
from depthcut.planning import plan_by_hand
from depthcut.records import LayerSlice, Plan
from depthcut.settings import PlanSettings

TOKENS = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
"""Five times as long as a sliding window of the tiny models."""


def plan_without(folder: Path, removed: Sequence[int], *, source: str = "tiny") -> Plan:
    facts = model_facts(open_checkpoint(folder), source=source)
    return plan_by_hand(facts, PlanSettings(remove=",".join(map(str, removed))))


def arranged(plan: Plan, *slices: tuple) -> Plan:
    """The plan with other slices: (start, stop) or (start, stop, model)."""
    names = ("start", "stop", "model")
    made = tuple(LayerSlice(**dict(zip(names, each, strict=False))) for each in slices)
    return msgspec.structs.replace(plan, slices=made)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, use_cache=False).logits


def logits_without(model: PreTrainedModel, stack: str, removed: Sequence[int]) -> Tensor:
    """Logits of the whole model while the removed layers pass their input on.

    No index, mask or config of a kept layer changes: independent of how a cut is expressed.
    """

    def pass_through(module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        states = args[0] if args else kwargs["hidden_states"]
        return (states, *output[1:]) if isinstance(output, tuple) else states

    layers = model.get_submodule(stack)
    hooks = [
        layers[layer].register_forward_hook(pass_through, with_kwargs=True) for layer in removed
    ]
    try:
        return logits(model)
    finally:
        for hook in hooks:
            hook.remove()


def lacking(model: PreTrainedModel, removed: Sequence[int]) -> PreTrainedModel:
    """A copy that has no such layers, and whose config does not speak of them."""
    cut = copy.deepcopy(model)
    layers = find_layers(cut)
    kept = [layer for layer in range(len(layers)) if layer not in removed]
    name = next(name for name, module in cut.named_modules() if module is layers)
    cut.set_submodule(name, nn.ModuleList([layers[layer] for layer in kept]))
    cut.config.num_hidden_layers = len(kept)
    if kinds := getattr(cut.config, "layer_types", None):
        cut.config.layer_types = [kinds[layer] for layer in kept]
    return cut


def load_exactly(folder: Path) -> PreTrainedModel:
    """Load with plain transformers; fails if any tensor is missing, unexpected or misshapen."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    return model.eval()
