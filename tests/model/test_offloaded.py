"""Models that accelerate spreads, some weights on the disk, run in part like others."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from torch import Tensor, nn

from depthcut.errors import SettingsError
from depthcut.model.loading import LoadedModel, find_layers, from_memory
from depthcut.model.skipping import Losses, skipping
from depthcut.model.some_layers import running_some_layers
from tests.surveying.surveys_for_tests import make_sequences
from tests.tiny import build_tiny


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_an_offloaded_model_runs_with_some_of_its_layers(model_type: str, tmp_path: Path) -> None:
    plain, spread = both(model_type, tmp_path)
    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    for layers in ((0, 1, 2, 3, 4, 5), (0, 2, 5), (1, 3, 4), ()):
        assert torch.equal(logits(spread, ids, layers), logits(plain, ids, layers))


def test_an_offloaded_model_loses_the_same(tmp_path: Path) -> None:
    plain, spread = both("llama", tmp_path)
    for one, other in zip(losses(plain), losses(spread), strict=True):
        assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def test_hooks_of_accelerate_are_there_again_afterwards(tmp_path: Path) -> None:
    _, spread = both("llama", tmp_path)
    before = [layer.forward for layer in spread.layers]
    logits(spread, torch.zeros(1, 4, dtype=torch.int64), (0, 5))
    assert [layer.forward for layer in spread.layers] == before


def test_an_offloaded_model_in_memory_is_refused(tmp_path: Path) -> None:
    _, spread = both("llama", tmp_path)
    with pytest.raises(SettingsError, match=r"is not in memory: give the model by its folder"):
        from_memory(spread.model, None)


def both(model_type: str, folder: Path) -> tuple[LoadedModel, LoadedModel]:
    """A model, and the same with layers 2 and 3 and all outside the layers on the disk."""
    plain = from_memory(build_tiny(model_type), None)
    model = build_tiny(model_type)
    places = {
        name: "cpu" if "." in name and name.split(".")[-1] in "0145" else "disk"
        for name in _parts(model, find_layers(model))
    }
    model = dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)
    assert any(weight.is_meta for weight in model.parameters())
    return plain, LoadedModel(model, None, plain.facts, None)


def _parts(module: nn.Module, layers: nn.ModuleList, prefix: str = "") -> Iterator[str]:
    """Names of the layers, and of all modules that hold none of them."""
    for name, child in module.named_children():
        if child is layers:
            yield from (f"{prefix}{name}.{layer}" for layer in range(len(layers)))
        elif layers in child.modules():
            yield from _parts(child, layers, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def logits(loaded: LoadedModel, ids: Tensor, layers: tuple[int, ...]) -> Tensor:
    with running_some_layers(loaded) as run:
        return run(ids, layers)


def losses(loaded: LoadedModel) -> list[Losses]:
    with skipping(loaded, make_sequences(), batch_size=2) as skipper:
        return [skipper.measure(kept, 0) for kept in ((0, 2, 3, 5), (0, 1, 2, 4))]
