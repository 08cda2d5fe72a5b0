"""Attention or MLP alone goes by zeros: exactly, and only where that is known to be right."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from benchmarks.architectures import load
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthcut import api
from depthcut.architectures.names import LayerNames
from depthcut.architectures.sublayers import PROVED, ended_part, is_plain
from depthcut.checkpoint.folder import SINGLE_FILE, model_facts, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError, PlanError, SettingsError
from depthcut.model.loading import from_memory
from depthcut.model.sublayers import silencing
from depthcut.planning import plan_by_hand
from depthcut.records import Plan, Sublayer
from depthcut.reporting.exports import mergekit_yaml
from depthcut.reporting.terminal import verification_lines
from depthcut.settings import PlanSettings
from depthcut.slicing import slice_checkpoint, verify_slice
from tests import every_type
from tests.slices import TOKENS, load_exactly, logits
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

ZEROED = {(1, "attention"), (2, "mlp"), (4, "attention")}
SOME_TYPES = (
    *("bailing_hybrid", "falcon", "gpt_neox_japanese", "gpt_oss", "granitemoe", "jamba"),
    *("lfm2_moe", "llama4_text", "modernbert-decoder", "phi", "qwen2_moe", "xglm"),
)
NOT_BY_NAME = {
    "ctrl": "the last projection has a number for a name",
    "glm_moe_dsa": "layers take what the attention of others found",
    "hy_v4": "layers take what the attention of others found",
    "jetmoe": "a bias is added behind the experts",
}
"""Types whose parts can be silenced in memory, and not be zeroed."""


def plan_of(folder: Path, remove: str) -> Plan:
    facts = model_facts(open_checkpoint(folder), source=str(folder))
    return plan_by_hand(facts, PlanSettings(remove=remove))


def silent(model: PreTrainedModel, parts: set) -> Tensor:
    with silencing(from_memory(model, None)) as silence:
        silence(parts)
        return logits(model)


# --- exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_zeros_are_the_silent_part(model_type: str, tmp_path: Path) -> None:
    parent = save_tiny(build_tiny(model_type), tmp_path / "parent")
    plan = plan_of(parent, "1.attention,2.mlp,4.attention")
    slice_checkpoint(parent, plan, tmp_path / "cut", zero=True)
    assert torch.equal(logits(load_exactly(tmp_path / "cut")), silent(load_exactly(parent), ZEROED))
    assert verify_slice(tmp_path / "cut", parent).tensors


@pytest.mark.parametrize(
    "model_type",
    [
        *SOME_TYPES,
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in sorted({*every_type.model_types()} - {*SOME_TYPES})
            if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        ),
    ],
)
def test_a_type_is_proved_or_refused(model_type: str, tmp_path: Path) -> None:
    model = every_type.build(model_type)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases begin at zero, where none would be missed
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "parent")
    try:
        with silencing(from_memory(model, None)) as silence:
            silence(ZEROED)
            whole = None
    except (ArchitectureError, AttributeError) as error:
        whole = error
    if whole is not None or model_type in NOT_BY_NAME:
        assert model_type not in PROVED
        return
    parent = load(every_type.auto_class(model_type), tmp_path / "parent")
    plan = plan_of(tmp_path / "parent", "1.attention,2.mlp,4.attention")
    slice_checkpoint(tmp_path / "parent", plan, tmp_path / "cut", zero=True, verify=lambda _: None)
    made = load(every_type.auto_class(model_type), tmp_path / "cut")
    expected = silent(parent, ZEROED)
    assert torch.equal(logits(made), expected)
    assert (logits(parent) - expected).abs().max() > 1e-4


def test_parts_go_beside_layers(tiny_llama_sharded: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_llama_sharded, "3,1.attention,2.attention,2.mlp,5.mlp")
    assert plan.words == ("layers 2–3 (2 layers); attention of layer 1; MLP of layer 5")
    record = slice_checkpoint(
        tiny_llama_sharded, plan, tmp_path / "cut", zero=True, shard_bytes=99999
    )
    assert record.result.layers == 4
    parent = load_exactly(tiny_llama_sharded)
    gone = {
        (2, "attention"),
        (2, "mlp"),
        (3, "attention"),
        (3, "mlp"),
        (1, "attention"),
        (5, "mlp"),
    }
    assert torch.equal(logits(load_exactly(tmp_path / "cut")), silent(parent, gone))
    proved = verify_slice(tmp_path / "cut", tiny_llama_sharded)
    assert (proved.result, proved.zeroed_tensors) == (record.result, 2)
    assert "2 of them zero as the plan wants" in verification_lines(proved)
    card = (tmp_path / "cut" / "README.md").read_text()
    assert "set to zero, so that they add nothing: attention of layer 1; MLP of layer 5" in card
    assert "plan.json --zero --out" in card


def test_linked_files_hold_the_zeros_too(tiny_llama_sharded: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_llama_sharded, "1.attention")
    slice_checkpoint(tiny_llama_sharded, plan, tmp_path / "cut", zero=True, link=True)
    verify_slice(tmp_path / "cut", tiny_llama_sharded)
    parent = load_exactly(tiny_llama_sharded)
    expected = silent(parent, {(1, "attention")})
    assert torch.equal(logits(load_exactly(tmp_path / "cut")), expected)
    verify_slice(tmp_path / "cut", tiny_llama_sharded)  # the parent's own files were not written


def test_a_plan_goes_through_its_file(tiny_llama: Path, tmp_path: Path) -> None:
    settings = PlanSettings(remove="2.mlp")
    made = api.plan(str(tiny_llama), settings, out=tmp_path / "plan.json")
    assert made.zeroed == (Sublayer(layer=2, part="mlp"),)
    record = api.slice(tiny_llama, tmp_path / "plan.json", tmp_path / "cut", zero=True)
    assert record.plan == made
    assert api.verify(tmp_path / "cut").loads


# --- proved -------------------------------------------------------------------------------------


def test_a_weight_that_is_not_zero_is_found(tiny_llama: Path, tmp_path: Path) -> None:
    slice_checkpoint(tiny_llama, plan_of(tiny_llama, "2.mlp"), tmp_path / "cut", zero=True)
    weights = load_file(tmp_path / "cut" / SINGLE_FILE)
    weights["model.layers.2.mlp.down_proj.weight"][3, 1] = 1e-20
    save_file(weights, tmp_path / "cut" / SINGLE_FILE, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.2.mlp.down_proj.weight' must be zero, and"):
        verify_slice(tmp_path / "cut", tiny_llama)


# --- refused ------------------------------------------------------------------------------------


def test_zeros_must_be_wanted(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_llama, "2.mlp")
    with pytest.raises(PlanError, match=r"MLP of layer 2 .* no config can say: with --zero"):
        slice_checkpoint(tiny_llama, plan, tmp_path / "cut")
    with pytest.raises(PlanError, match="--zero, and the plan takes whole layers only"):
        slice_checkpoint(tiny_llama, plan_of(tiny_llama, "2"), tmp_path / "cut", zero=True)
    assert not (tmp_path / "cut").exists()


def test_a_type_that_is_not_proved_is_refused(tmp_path: Path) -> None:
    every_type.build("bloom").save_pretrained(tmp_path / "bloom")
    with pytest.raises(ArchitectureError, match="type 'bloom', of which it is not proved"):
        slice_checkpoint(
            tmp_path / "bloom", plan_of(tmp_path / "bloom", "1.mlp"), tmp_path / "cut", zero=True
        )


def test_an_opt_that_norms_the_stream_itself_is_refused(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    every_type.build("opt", do_layer_norm_before=False).save_pretrained(parent)
    with pytest.raises(ArchitectureError, match="do_layer_norm_before is False, so that layers"):
        slice_checkpoint(parent, plan_of(parent, "1.mlp"), tmp_path / "cut", zero=True)


def test_a_text_decoder_within_a_model_counts_as_its_own_type(tmp_path: Path) -> None:
    model = every_type.build("llava")
    model.save_pretrained(tmp_path / "parent")
    plan = plan_of(tmp_path / "parent", "1.mlp")
    slice_checkpoint(tmp_path / "parent", plan, tmp_path / "cut", zero=True)
    parent, made = (
        load(every_type.auto_class("llava"), tmp_path / each) for each in ("parent", "cut")
    )
    with silencing(from_memory(parent, None)) as silence:
        silence({(1, "mlp")})
        expected = parent(TOKENS).logits
    assert torch.equal(made(TOKENS).logits, expected)


@pytest.mark.parametrize(
    ("tail", "dtype"),
    [
        ("mlp.down_proj.qweight", "I32"),
        ("mlp.down_proj.scales", "F16"),
        ("mlp.down_proj.weight", "U8"),
        ("mlp.down_proj.weight.absmax", "F32"),
        ("mlp.down_proj.weight", "F8_E4M3"),
        ("mlp.experts.down_proj_blocks", "U8"),
    ],
)
def test_packed_weights_are_not_zero_for_their_bytes(tail: str, dtype: str) -> None:
    assert ended_part(tail) in ("mlp", None)
    assert ended_part(tail) is None or not is_plain(tail, dtype)


def test_a_quantised_projection_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantised"
    folder.mkdir()
    weights = load_file(tiny_llama / SINGLE_FILE)
    weight = weights.pop("model.layers.2.mlp.down_proj.weight")
    weights["model.layers.2.mlp.down_proj.qweight"] = weight.to(torch.int32)
    save_file(weights, folder / SINGLE_FILE, {"format": "pt"})
    (folder / "config.json").write_text((tiny_llama / "config.json").read_text())
    with pytest.raises(ArchitectureError, match=r"down_proj\.qweight is I32, packed or scaled"):
        slice_checkpoint(folder, plan_of(folder, "2.mlp"), tmp_path / "cut", zero=True)


@pytest.mark.parametrize(
    ("zeroed", "why"),
    [
        ([(3, "mlp")], "zeroes the mlp of layer 3, which it does not keep"),
        ([(9, "mlp")], "zeroes the mlp of layer 9, which it does not keep"),
        ([(1, "mlp"), (1, "attention")], "both parts of a layer go with the layer"),
        ([(1, "mlp"), (1, "mlp")], "zeroes layer 1 twice"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(
    tiny_llama: Path, tmp_path: Path, zeroed: list, why: str
) -> None:
    parts = tuple(Sublayer(layer=layer, part=part) for layer, part in zeroed)
    plan = msgspec.structs.replace(plan_of(tiny_llama, "3"), zeroed=parts)
    with pytest.raises(PlanError, match=why):
        slice_checkpoint(tiny_llama, plan, tmp_path / "cut", zero=True)


def test_what_has_layers_only_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_llama, "1.attention")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(PlanError, match="an adapter can lose whole layers only"):
        api.slice(adapter, plan, tmp_path / "cut")
    with pytest.raises(SettingsError, match="mergekit's slices are of whole layers"):
        mergekit_yaml(plan)


def test_names_of_projections_are_those_of_the_checkpoint(tiny_llama: Path) -> None:
    checkpoint = open_checkpoint(tiny_llama)
    names = LayerNames(checkpoint.architecture.stacks)
    ended = {names.tail(name): ended_part(names.tail(name)) for name in checkpoint.tensors}
    assert {tail: part for tail, part in ended.items() if part} == {
        "self_attn.o_proj.weight": "attention",
        "mlp.down_proj.weight": "mlp",
    }
