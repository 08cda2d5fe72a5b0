"""A model run in part against models that lack the layers, on every type."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthcut.errors import ArchitectureError
from depthcut.model.loading import LoadedModel, find_layers, from_memory
from depthcut.model.some_layers import running_some_layers
from tests.every_type import build, model_types
from tests.slices import lacking
from tests.tiny import TINY_TYPES, build_tiny

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
REMOVED = ((1,), (2, 4), (0, 5), (1, 2, 3))

NO_STACK = frozenset(
    {
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp"),
        *("pegasus", "plbart", "prophetnet", "whisper"),  # decoders of two stacks
        *("hrm_text", "longcat_flash"),  # layers in stacks of stacks, or two in each
    }
)
"""Whose layers are not found as one list."""
LOOPED = frozenset({"dory", "inkling2_loop_text", "mllama"})
"""That run a layer twice, or not without an image."""
ENTANGLED = frozenset(
    {
        *("gemma3n_text", "gemma4", "gemma4_text"),  # keys and values of earlier layers
        *("glm_moe_dsa", "hy_v4"),  # what an earlier layer picked
        *("inkling2_text", "zaya", "xlm", "reformer"),  # more than one stream
        "rwkv",  # rescaled between layers
    }
)
"""Whose layers pass more to each other than one residual stream."""


@pytest.mark.parametrize("model_type", sorted(TINY_TYPES))
def test_it_gives_what_a_model_without_the_layers_gives(model_type: str) -> None:
    model = build_tiny(model_type)
    wanted = {removed: logits(lacking(model, removed)) for removed in REMOVED}
    before = logits(model)
    with running_some_layers(from_memory(model, None)) as run:
        entered: dict[int, Tensor] = {}
        run(IDS, range(6), observe=entered.setdefault)
        for removed, expected in wanted.items():
            kept = [layer for layer in range(6) if layer not in removed]
            behind = [layer for layer in kept if layer > removed[0]]
            assert torch.equal(run(IDS, kept), expected)
            assert torch.equal(run(IDS, behind, entering=entered[removed[0]]), expected)
    assert torch.equal(logits(model), before)


@pytest.mark.slow  # three minutes: some 190 types
@pytest.mark.parametrize(
    "model_type", sorted(set(model_types()) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - {"blt"})
)
def test_every_type_is_run_rightly_or_refused(model_type: str) -> None:
    loaded = from_memory_or_none(build(model_type))
    if loaded is None:
        assert model_type in NO_STACK
        return
    refused, found = "", {}
    try:
        with running_some_layers(loaded) as run:
            entered: dict[int, Tensor] = {}
            run(IDS, range(6), observe=entered.setdefault)
            for removed in REMOVED:
                kept = [layer for layer in range(6) if layer not in removed]
                behind = [layer for layer in kept if layer > removed[0]]
                found[removed] = run(IDS, kept), run(IDS, behind, entering=entered[removed[0]])
    except ArchitectureError as error:
        refused = str(error)
    assert ("cannot be run in part" in refused) == (model_type in LOOPED)
    assert ("more to each other" in refused) == (model_type in ENTANGLED)
    for removed, (whole, resumed) in found.items():
        with passing_through(loaded.layers, removed):
            expected = logits(loaded.model)
        assert torch.equal(whole, expected)
        assert torch.equal(resumed, expected)


def test_a_model_that_changes_its_states_between_layers_is_refused() -> None:
    model = build("rwkv")
    with (
        pytest.raises(ArchitectureError, match="more to each other than the residual stream"),
        running_some_layers(from_memory(model, None)),
    ):
        pass
    assert all("forward" not in layer.__dict__ for layer in find_layers(model))


def test_a_layer_that_misses_what_another_leaves_for_it_is_refused() -> None:
    with (
        pytest.raises(ArchitectureError, match="more to each other than the residual stream"),
        running_some_layers(from_memory(build("gemma3n_text"), None)),
    ):
        pass


def from_memory_or_none(model: PreTrainedModel) -> LoadedModel | None:
    try:
        return from_memory(model, None)
    except ArchitectureError:
        return None


def logits(model: PreTrainedModel) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@contextmanager
def passing_through(layers: nn.ModuleList, removed: Sequence[int]) -> Iterator[None]:
    def pass_through(module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple | list) else state

    hooks = [
        layers[layer].register_forward_hook(pass_through, with_kwargs=True) for layer in removed
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
