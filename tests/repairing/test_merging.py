"""Merges against a plain loop over the tensors of files, and over states that layers give."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from depthcut.errors import ArchitectureError, SettingsError
from depthcut.model.loading import find_layers, load
from depthcut.repairing.merging import STRENGTHS
from depthcut.settings import LoadSettings
from tests.repairing.repairs import LOAD, repaired, saved, some_text
from tests.slices import lacking, logits, plan_without

ANY = pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])


def in_layers(folder: Path) -> list[dict[str, Tensor]]:
    """The tensors of each layer's files, by the names behind the layer."""
    found: dict[int, dict[str, Tensor]] = {}
    for file in folder.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            _, _, rest = name.partition(".layers." if ".layers." in name else ".h.")
            if rest:
                index, _, tail = rest.partition(".")
                found.setdefault(int(index), {})[tail] = tensor
    return [found[layer] for layer in sorted(found)]


def merge_into(model: PreTrainedModel, layer: int, removed: range, strength: float) -> None:
    """In memory."""
    layers = find_layers(model)
    for name, own in layers[layer].named_parameters():
        added = sum((layers[each].get_parameter(name) - own for each in removed), 0 * own)
        own.data += strength * added


def left(model: PreTrainedModel, layer: int) -> Tensor:
    """What leaves a layer on held-out sequences, one at a time, (tokens, hidden)."""
    found: list[Tensor] = []

    def see(_: object, __: object, output: object) -> None:
        found.append((output if isinstance(output, Tensor) else output[0])[0])

    hook = find_layers(model)[layer].register_forward_hook(see)
    with torch.no_grad():
        for ids in some_text().sequences[7::8]:
            model(input_ids=ids[None], use_cache=False)
    hook.remove()
    return torch.cat(found)


def off(found: Tensor, target: Tensor) -> float:
    lengths = target.norm(dim=1)
    errors = (found - target).double().square().sum(dim=1)
    return ((errors / lengths).sum() / lengths.sum()).sqrt().item()


@ANY
def test_every_tensor_gets_the_differences_of_the_removed_layers(
    model_type: str, tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model", torch.bfloat16, uneven=True)
    plan = plan_without(folder, (1, 3, 4))
    loaded = load(folder, LOAD)
    weights = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    record = repaired(loaded, plan, tmp_path / "out", method="merge", force=True)
    assert all(weights[name].equal(now) for name, now in loaded.model.state_dict().items())
    assert (record.fitted_tokens, record.held_out_tokens) == (0, 117)

    before, after = in_layers(folder), in_layers(tmp_path / "out")
    expected = [dict(before[layer]) for layer in plan.kept_layers]
    for block in record.blocks:
        (step,) = block.steps
        assert (step.layer, step.ridge, step.condition) == (block.start - 1, None, None)
        layer = plan.kept_layers.index(step.layer)
        for name, own in before[step.layer].items():
            added = torch.zeros_like(own, dtype=torch.float64)
            for removed in range(block.start, block.stop):
                added += before[removed][name].double() - own.double()
            expected[layer][name] = (own.double() + step.strength * added).bfloat16()
        assert {name.partition(f".{layer}.")[2] for name in step.tensors} == expected[layer].keys()
    for mine, its in zip(expected, after, strict=True):
        assert mine.keys() == its.keys()
        assert all(mine[name].equal(its[name]) for name in mine)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@ANY
def test_the_strength_is_the_best_of_all_on_held_out_text(model_type: str, tmp_path: Path) -> None:
    folder = saved(model_type, tmp_path / "model", uneven=True)
    plan, loaded = plan_without(folder, (1, 3, 4)), load(folder, LOAD)
    record = repaired(loaded, plan, tmp_path / "out", method="merge", force=True)
    whole = copy.deepcopy(loaded.model)  # whose layers change where they do not matter any more
    for block in record.blocks:
        (step,) = block.steps
        target, errors = left(loaded.model, block.stop - 1), {}
        layer = plan.kept_layers.index(step.layer)
        for strength in (0.0, *STRENGTHS):
            tried = copy.deepcopy(whole)
            merge_into(tried, step.layer, range(block.start, block.stop), strength)
            errors[strength] = off(left(lacking(tried, (1, 3, 4)), layer), target)
        assert step.error_before == pytest.approx(errors.pop(0.0), rel=1e-6)
        assert step.strength == min(errors, key=lambda each: errors[each])
        assert step.error_after == pytest.approx(errors[step.strength], rel=1e-6)
        merge_into(whole, step.layer, range(block.start, block.stop), step.strength)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64)
    torch.testing.assert_close(logits(written), logits(lacking(whole, (1, 3, 4))))


def test_what_is_judged_is_rounded_as_it_is_written(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model", torch.bfloat16)
    plan, wide = plan_without(folder, (2, 3)), LoadSettings(device="cpu", dtype="float32")
    loaded = load(folder, wide)
    record = repaired(loaded, plan, tmp_path / "out", method="merge", force=True)
    written = load(tmp_path / "out", wide).model
    after = off(left(written, 1), left(loaded.model, 3))
    assert record.blocks[0].error_after == pytest.approx(after, rel=1e-6)


def test_a_merge_that_does_not_help_is_refused_unless_forced(tmp_path: Path) -> None:
    folder = saved("llama", tmp_path / "model", uneven=True)
    plan, loaded = plan_without(folder, (2, 3)), load(folder, LOAD)
    with pytest.raises(SettingsError, match=r"merge does not make up for layers 2–3.*--force"):
        repaired(loaded, plan, tmp_path / "out", method="merge")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    repaired(loaded, plan, tmp_path / "out", method="merge", force=True)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| repair | merge, differences of the removed layers times 0.125 |" in card


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("qwen3_moe", r"layers 1 and 2 do not have the same tensors \(mlp\..*\), so layer 2 "),
        ("mixtral", r"hold model.layers.1.mlp.experts.gate_up_proj in another form"),
    ],
)
def test_layers_that_cannot_be_added_are_refused_before_the_text_is_read(
    model_type: str, message: str, tmp_path: Path
) -> None:
    folder = saved(model_type, tmp_path / "model", torch.float32)
    with pytest.raises(ArchitectureError, match=message):
        repaired(
            load(folder, LOAD),
            plan_without(folder, (2,)),
            tmp_path / "out",
            method="merge",
            text=lambda: pytest.fail("it was read"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
