"""Gains of norms against a plain least-squares solve of each channel."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut.errors import ArchitectureError
from depthcut.model.loading import find_layers, from_memory, load
from depthcut.repairing.layers import layers_in_memory
from depthcut.repairing.norms import Gain, find_norm
from tests.every_type import build
from tests.repairing.repairs import LOAD, repaired, saved, some_text
from tests.slices import lacking, load_exactly, logits, plan_without
from tests.tiny import build_tiny

NORMS = {"llama": "input_layernorm", "gpt2": "ln_1"}


def norm_of(model: PreTrainedModel, layer: int) -> nn.Module:
    return find_layers(model)[layer].get_submodule(NORMS[model.config.model_type])


def the_norm(model: PreTrainedModel, layer: int) -> Gain:
    with layers_in_memory(from_memory(model, None)) as layers:
        return find_norm(layers, layer)


def normed(model: PreTrainedModel, layer: int, *, held: bool) -> Tensor:
    """What a norm gives, one sequence at a time, (tokens, hidden)."""
    found: list[Tensor] = []
    hook = norm_of(model, layer).register_forward_hook(lambda *told: found.append(told[-1][0]))
    with torch.no_grad():
        for number, ids in enumerate(some_text().sequences):
            if (number % 8 == 7) is held:
                model(input_ids=ids[None], use_cache=False)
    hook.remove()
    return torch.cat(found)


def off(found: Tensor, target: Tensor) -> float:
    lengths = target.norm(dim=1)
    errors = (found - target).square().sum(dim=1)
    return ((errors / lengths).sum() / lengths.sum()).sqrt().item()


@pytest.mark.parametrize("removed", [(2, 3), (1, 3)])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gains_are_the_plain_least_squares_solve_of_each_channel(
    model_type: str, removed: tuple[int, ...], tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model", uneven=True)
    plan, loaded = plan_without(folder, removed), load(folder, LOAD)
    weights = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    record = repaired(loaded, plan, tmp_path / "out", method="norm", force=True)
    assert all(weights[name].equal(now) for name, now in loaded.model.state_dict().items())

    written = load(tmp_path / "out", LOAD).model
    own = lacking(loaded.model, removed)
    for block in record.blocks:
        (step,) = block.steps
        assert (step.layer, block.first, block.behind) == (block.stop, (step,), ())
        layer = plan.kept_layers.index(block.stop)
        norm = norm_of(own, layer)
        bias = torch.zeros(()) if model_type == "llama" else norm.bias.detach()
        target, before = normed(loaded.model, block.stop, held=False), norm.weight.detach()
        given = (normed(own, layer, held=False) - bias) / before
        root = target.norm(dim=1, keepdim=True) ** -0.5
        expected = torch.stack(
            [
                torch.linalg.lstsq(mine[:, None], its[:, None]).solution[0, 0]
                for mine, its in zip((root * given).T, (root * (target - bias)).T, strict=True)
            ]
        )
        assert (expected - before).abs().max() > 1e-2
        target = normed(loaded.model, block.stop, held=True)
        held = normed(own, layer, held=True)
        assert step.error_before == pytest.approx(off(held, target), rel=1e-6)
        norm.weight.data = expected
        held = normed(own, layer, held=True)
        assert step.error_after == pytest.approx(off(held, target), rel=1e-6)
        torch.testing.assert_close(norm_of(written, layer).weight, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits(written), logits(own), rtol=1e-5, atol=1e-5)


def test_nothing_but_the_gain_is_new_and_the_folder_loads(tmp_path: Path) -> None:
    folder = saved("gpt2", tmp_path / "model", torch.bfloat16, uneven=True)
    loaded = load(folder, LOAD)
    record = repaired(loaded, plan_without(folder, (2, 3)), tmp_path / "out", method="norm")
    (step,) = record.blocks[0].steps
    assert step.tensors == ("transformer.h.2.ln_1.weight",)
    assert step.error_after < step.error_before
    load_exactly(tmp_path / "out")
    before, after = (
        {name: its for file in path.glob("*.safetensors") for name, its in load_file(file).items()}
        for path in (folder, tmp_path / "out")
    )
    kept = {0: 0, 1: 1, 2: 4, 3: 5}
    for name, its in after.items():
        index = name.split(".")[2]
        was = name.replace(f".h.{index}.", f".h.{kept[int(index)]}.") if ".h." in name else name
        assert its.equal(before[was]) is (name not in step.tensors)


@pytest.mark.parametrize(
    "model_type", ["gemma2", "gemma3_text", "nemotron", "olmo2", "deepseek_v4"]
)
@pytest.mark.parametrize("gain", [None, 1.0])
def test_norms_that_are_no_plain_gain_and_layers_without_one_are_refused(
    model_type: str, gain: float | None
) -> None:
    model = build(model_type).eval()  # with a gain of 1 throughout, twice the state is w * (2 x)
    for name, own in model.named_parameters():
        if "norm" in name and gain is not None:
            own.data.fill_(gain)
    with pytest.raises(ArchitectureError, match=r"layer 1 of .* by no norm .*choose another --met"):
        the_norm(model, 1)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox", "opt", "phi3", "mixtral"])
def test_the_norm_is_the_one_that_takes_what_enters_the_layer(model_type: str) -> None:
    names = {
        "gpt2": "transformer.h.2.ln_1",
        "gpt_neox": "gpt_neox.layers.2.input_layernorm",
        "opt": "model.decoder.layers.2.self_attn_layer_norm",
    }
    found = the_norm(build_tiny(model_type).to(torch.bfloat16), 2)
    assert found.name == names.get(model_type, "model.layers.2.input_layernorm")


def test_the_last_layers_have_no_norm_behind_them(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model")
    with pytest.raises(ArchitectureError, match=r"removes layers 4–5 .*, the last ones: no layer"):
        repaired(
            load(folder, LOAD), plan_without(folder, (1, 4, 5)), tmp_path / "out", method="norm"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
