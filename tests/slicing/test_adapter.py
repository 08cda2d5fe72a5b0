"""Adapters cut with their base, against the whole model with adapter and fewer layers."""

import json
import os
import shutil
import warnings
from pathlib import Path

import msgspec
import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthcut.errors import ArchitectureError, CheckpointError, OutputError, PlanError
from depthcut.records import Plan, SliceRecord, read_record
from depthcut.slicing import adapter as module
from depthcut.slicing import slice_checkpoint
from depthcut.slicing.adapter import is_adapter, slice_adapter
from tests.slices import arranged, load_exactly, logits, plan_without
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

STACKS = {"llama": "model.layers", "gpt2": "transformer.h", "mixtral": "model.layers"}
LINEAR = ["q_proj", "v_proj", "down_proj"]
Adapter = tuple[Path, Path]
"""Folders of the base and of the adapter."""


def make_adapter(
    tmp_path: Path, config: PeftConfig, model_type: str = "llama", **changes: object
) -> Adapter:
    """A base and an adapter with random parameters."""
    base = save_tiny(build_tiny(model_type, **changes), tmp_path / "base")
    model = adapted(load_exactly(base), config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "lora_" in name:
                nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter"


def adapted(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(model, config)


def load_adapter(base: Path, adapter: Path) -> PeftModel:
    """PEFT's own loading; fails if a tensor is missing or unexpected."""
    wrapped = PeftModel.from_pretrained(load_exactly(base), adapter)
    result = wrapped.load_adapter(adapter, "default")  # again, for what it returns
    assert not result.missing_keys
    assert not result.unexpected_keys
    return wrapped.eval()


def load_loosely(base: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(load_exactly(base), adapter).eval()


def arranged_logits(model: PeftModel, stack: str, kept: tuple[int, ...]) -> Tensor:
    """Logits of the whole model with the adapter while only these layers run, in this order."""
    whole = model.get_base_model()
    layers = whole.get_submodule(stack)
    whole.set_submodule(stack, nn.ModuleList(layers[layer] for layer in kept))
    whole.config.num_hidden_layers = len(kept)
    return logits(model)


def assert_cut_exactly(tmp_path: Path, made: Adapter, plan: Plan, stack: str) -> PeftModel:
    base, adapter = made
    slice_checkpoint(base, plan, tmp_path / "cut")
    slice_adapter(adapter, plan, tmp_path / "out", base=str(tmp_path / "cut"))
    expected = arranged_logits(load_loosely(base, adapter), stack, plan.kept_layers)
    without = logits(load_exactly(tmp_path / "cut"))
    assert not torch.equal(expected, without), "the adapter does nothing"
    cut = load_adapter(tmp_path / "cut", tmp_path / "out")
    assert torch.equal(logits(cut), expected)
    return cut


CASES: dict[str, PeftConfig] = {
    "lora": LoraConfig(target_modules=LINEAR),
    "lora on all linear layers": LoraConfig(target_modules="all-linear"),
    "lora by a pattern": LoraConfig(target_modules=r".*\.self_attn\.(q_proj|o_proj)"),
    "lora by a pattern of layers": LoraConfig(
        target_modules=r"model\.layers\.[0-4]\.(self_attn\.q|mlp\.up)_proj"
    ),
    "lora by names": LoraConfig(
        target_modules=["model.layers.0.self_attn.q_proj", "layers.3.mlp.up_proj", "5.mlp.up_proj"]
    ),
    "lora on some layers": LoraConfig(target_modules=LINEAR, layers_to_transform=[0, 3, 4]),
    "lora on one layer": LoraConfig(target_modules=LINEAR, layers_to_transform=3),
    "lora on some layers of a list": LoraConfig(
        target_modules=LINEAR, layers_to_transform=[0, 3], layers_pattern="layers"
    ),
    "names beside some layers": LoraConfig(
        target_modules=["q_proj", "model.layers.5.mlp.up_proj"], layers_to_transform=[0, 3]
    ),
    "lora without some": LoraConfig(
        target_modules=LINEAR, exclude_modules=["model.layers.3.self_attn.q_proj"]
    ),
    "lora without a pattern of layers": LoraConfig(
        target_modules=LINEAR, exclude_modules=r".*layers\.[1-3]\.self_attn.*"
    ),
    "ranks and alphas by layer": LoraConfig(
        r=4,
        target_modules=LINEAR,
        rank_pattern={
            "model.layers.3.self_attn.q_proj": 2,
            r"^model\.layers\.(0|5)\.mlp\.down_proj": 3,
            "down_proj": 5,
        },
        alpha_pattern={"layers.5.self_attn.v_proj": 32, r".*\.layers\.3\.mlp\.down_proj": 64},
    ),
    "dora": LoraConfig(target_modules=LINEAR, use_dora=True),
    "rslora with biases": LoraConfig(target_modules=LINEAR, use_rslora=True, bias="all"),
    "trained copies": LoraConfig(
        target_modules=["q_proj"], modules_to_save=["lm_head", "layers.3.mlp", "input_layernorm"]
    ),
    "tokens": LoraConfig(
        target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2, 70]}
    ),
    "embeddings": LoraConfig(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "pissa": LoraConfig(target_modules=LINEAR, init_lora_weights="pissa"),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "ia3 by names": peft.IA3Config(
        target_modules=["k_proj", "layers.3.mlp.down_proj"],
        feedforward_modules=["layers.3.mlp.down_proj"],
    ),
    "adalora": peft.AdaLoraConfig(target_modules=LINEAR, total_step=10),
    "boft": peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=4),
    "c3a": peft.C3AConfig(target_modules=["q_proj"], block_size=8),
    "delora": peft.DeloraConfig(target_modules=LINEAR),
    "fourierft": peft.FourierFTConfig(target_modules=["q_proj", "v_proj"], n_frequency=20),
    "hra": peft.HRAConfig(target_modules=LINEAR),
    "ln tuning": peft.LNTuningConfig(target_modules=["input_layernorm", "model.norm"]),
    "loha": peft.LoHaConfig(target_modules=LINEAR, rank_pattern={"layers.3.mlp.down_proj": 3}),
    "lokr": peft.LoKrConfig(target_modules=LINEAR),
    "miss": peft.MissConfig(target_modules=LINEAR, r=4),
    "oft": peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4, r=0),
    "road": peft.RoadConfig(target_modules=["q_proj"], group_size=8),
}


@pytest.mark.parametrize("case", CASES)
def test_cut_adapter_on_cut_base_equals_deletion(tmp_path: Path, case: str) -> None:
    made = make_adapter(tmp_path, CASES[case])
    plan = plan_without(made[0], (1, 4))
    assert_cut_exactly(tmp_path, made, plan, STACKS["llama"])


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("gpt2", LoraConfig(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)),
        (
            "gpt2",
            LoraConfig(
                target_modules=["c_attn"], layers_to_transform=[1, 3], layers_pattern=["h", "x"]
            ),
        ),
        ("mixtral", LoraConfig(target_modules=["q_proj"], target_parameters=["down_proj"])),
        (
            "mixtral",
            LoraConfig(
                target_modules=["q_proj"],
                target_parameters=["layers.3.mlp.experts.gate_up_proj", "experts.down_proj"],
            ),
        ),
    ],
)
def test_other_architectures_and_experts(
    tmp_path: Path, model_type: str, config: PeftConfig
) -> None:
    made = make_adapter(tmp_path, config, model_type)
    assert_cut_exactly(tmp_path, made, plan_without(made[0], (0, 4)), STACKS[model_type])


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=LINEAR, layers_to_transform=1, alpha_pattern={"q_proj": 32}),
        LoraConfig(
            target_modules=LINEAR,
            modules_to_save=["layers.1.input_layernorm"],
            rank_pattern={r"model\.layers\.(1|5)\.self_attn\.q_proj": 2},
        ),
    ],
)
def test_repeated_and_moved_layers_repeat_and_move_what_the_adapter_adds(
    tmp_path: Path, config: PeftConfig
) -> None:
    base, adapter = make_adapter(tmp_path, config)
    plan = arranged(plan_without(base, (2,)), (4, 6), (0, 2), (1, 2))
    slice_checkpoint(base, plan, tmp_path / "cut")
    slice_adapter(adapter, plan, tmp_path / "out")
    expected = arranged_logits(load_adapter(base, adapter), STACKS["llama"], plan.kept_layers)
    assert torch.equal(logits(load_adapter(tmp_path / "cut", tmp_path / "out")), expected)


@pytest.fixture
def made(tmp_path: Path) -> Adapter:
    return make_adapter(tmp_path, LoraConfig(target_modules=LINEAR, layers_to_transform=[1, 3]))


def edit(adapter: Path, **changes: object) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_the_config_keeps_its_own_way_of_naming_layers(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    slice_adapter(adapter, plan_without(base, (0, 2)), tmp_path / "out")
    before, after = config_of(adapter), config_of(tmp_path / "out")
    assert after["layers_to_transform"] == [0, 1]
    changed = {"layers_to_transform", "base_model_name_or_path"}
    assert {key for key in before if before[key] != after[key]} == changed


def test_tensors_are_the_parent_s_under_new_names(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    slice_adapter(adapter, plan_without(base, (0, 3)), tmp_path / "out")
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(after) == {name.replace(".1.", ".0.") for name in before if ".layers.1." in name}
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name.replace(".0.", ".1.")])


def test_without_a_base_it_names_none_so_that_nobody_loads_it_on_the_uncut_one(
    tmp_path: Path, made: Adapter
) -> None:
    base, adapter = made
    edit(adapter, revision="0123abcd", base_model_name_or_path="someone/base")
    slice_adapter(adapter, plan_without(base, (0, 2)), tmp_path / "out")
    assert config_of(tmp_path / "out")["base_model_name_or_path"] is None
    assert config_of(tmp_path / "out")["revision"] is None
    assert "an adapter of `someone/base`" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(OSError):
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


def test_with_a_base_it_loads_on_that_by_itself(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    plan = plan_without(base, (0, 2))
    slice_checkpoint(base, plan, tmp_path / "cut")
    slice_adapter(adapter, plan, tmp_path / "out", base=str(tmp_path / "cut"))
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(loaded), logits(load_adapter(tmp_path / "cut", tmp_path / "out")))


def test_tokenizer_plan_card_and_record_lie_beside_it(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    tiny_tokenizer(adapter)
    (adapter / "README.md").write_text(
        "---\nlicense: mit\nbase_model: someone/base\n"
        "tags: [lora, 'base_model:adapter:someone/base']\n---\nMine.\n"
    )
    (adapter / "training_args.bin").write_bytes(b"x")
    plan = plan_without(base, (0, 2))
    record = slice_adapter(adapter, plan, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert "training_args.bin" not in names
    assert read_record(tmp_path / "out" / "plan.json", Plan) == plan
    assert read_record(tmp_path / "out" / "depthcut.json", SliceRecord) == record
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert record.result.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert record.result.layer_parameters[2:] == (0, 0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'license: "mit"' in card
    assert 'library_name: "peft"' in card
    assert "base_model" not in card


def test_what_is_an_adapter(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    assert is_adapter(adapter)
    assert not is_adapter(base)
    shutil.copy(adapter / "adapter_config.json", base)
    assert not is_adapter(base)
    assert not is_adapter(tmp_path / "nothing")


def test_names_that_no_table_has_are_found_by_themselves(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors = {name.replace("model.layers", "odd.deck"): each for name, each in tensors.items()}
    tensors["base_model.model.vision_tower.encoder.deck.0.q_proj.lora_A.weight"] = torch.ones(2, 9)
    save_file(tensors, weights)
    slice_adapter(adapter, plan_without(base, (0, 2)), tmp_path / "out")
    names = load_file(tmp_path / "out" / "adapter_model.safetensors").keys()
    assert {name.split(".")[4] for name in names if "vision" not in name} == {"0", "1"}
    assert any("vision_tower.encoder.deck.0." in name for name in names)
    # Layer 0 of another tower is no target of [0, 1]: PEFT must not take it for one.
    assert config_of(tmp_path / "out")["layers_to_transform"] is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer_replication": [[0, 4], [2, 6]]}, ArchitectureError, "layer_replication builds"),
        ({"peft_type": "PREFIX_TUNING"}, ArchitectureError, "'PREFIX_TUNING' cannot be cut"),
        ({"layers_to_transform": "1"}, CheckpointError, "must be a layer or a list of layers"),
        ({"layers_to_transform": [1, None]}, CheckpointError, "must be a layer or a list"),
        ({"layers_pattern": {}, "modules_to_save": [[]]}, CheckpointError, "must be a list of na"),
        ({"modules_to_save": "lm_head"}, CheckpointError, "modules_to_save must be a list of nam"),
        ({"modules_to_save": ["3.mlp"]}, ArchitectureError, "modules_to_save names layers by '3"),
        ({"rank_pattern": {r".*\.[0-3]\.mlp": 4}}, ArchitectureError, "rank_pattern names layers"),
        (
            {"alpha_pattern": {"layers.[13].mlp": 4}},
            ArchitectureError,
            "alpha_pattern names layers",
        ),
        (
            {"alpha_pattern": {".*1.mlp.up_proj": 4}},
            ArchitectureError,
            "alpha_pattern names layers",
        ),
        ({"alpha_pattern": {"deck.layers.1.mlp": 4}}, ArchitectureError, "names layers by 'deck"),
        ({"new_field": ["model.layers.1.mlp"]}, ArchitectureError, "new_field names layers by"),
        ({"feedforward_modules": r".*\.1\..*"}, ArchitectureError, "feedforward_modules names"),
    ],
)
def test_what_cannot_be_renumbered_is_refused(
    tmp_path: Path, made: Adapter, changes: dict, error: type[Exception], message: str
) -> None:
    base, adapter = made
    edit(adapter, **changes)
    with pytest.raises(error, match=message):
        slice_adapter(adapter, plan_without(base, (0, 2)), tmp_path / "place" / "out")
    assert not (tmp_path / "place").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    plan = plan_without(base, (0,))
    wide = msgspec.structs.replace(plan.model, hidden_size=64)
    with pytest.raises(PlanError, match=r"reads 48 values.*width of 64"):
        slice_adapter(adapter, msgspec.structs.replace(plan, model=wide), tmp_path / "out")
    short = arranged(plan, (1, 3))
    model = msgspec.structs.replace(
        plan.model, layers=3, layer_parameters=plan.model.layer_parameters[:3]
    )
    short = msgspec.structs.replace(short, model=model)
    with pytest.raises(PlanError, match="changes layer 3, the plan's model tiny has layers 0–2"):
        slice_adapter(adapter, short, tmp_path / "out")
    foreign = arranged(plan, (0, 2, "other"))
    with pytest.raises(PlanError, match="layers of other"):
        slice_adapter(adapter, foreign, tmp_path / "out")


def test_nothing_left_is_refused(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    with pytest.raises(PlanError, match="changes only layers that the plan removes"):
        slice_adapter(adapter, plan_without(base, (1, 3)), tmp_path / "out")


def test_several_lists_of_layers_are_refused(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    tensors = {
        f"base_model.model.{name}.1.q_proj.lora_A.weight": torch.ones(2, 48) for name in "ab"
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(ArchitectureError, match=r"cannot be told from their names.* in a, b"):
        slice_adapter(adapter, plan_without(base, (0,)), tmp_path / "out")


def test_pickled_adapters_are_refused_with_what_to_do(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(
        CheckpointError, match=r"only adapter_model\.bin: a pickle is not read; load"
    ):
        slice_adapter(adapter, plan_without(base, (0,)), tmp_path / "out")
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors: an adapter fol"):
        slice_adapter(adapter, plan_without(base, (0,)), tmp_path / "out")


def test_damage_and_existing_places_leave_nothing(tmp_path: Path, made: Adapter) -> None:
    base, adapter = made
    plan = plan_without(base, (0,))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        slice_adapter(adapter, plan, tmp_path / "place" / "out")
    assert not (tmp_path / "place").exists()
    with pytest.raises(OutputError, match="exists already"):
        slice_adapter(adapter, plan, adapter)


def test_an_adapter_changed_while_it_is_read_is_refused(
    tmp_path: Path, made: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = made
    write = module.write_ranges

    def write_and_touch(*args: object, **kwargs: object) -> None:
        write(*args, **kwargs)
        os.utime(adapter / "adapter_model.safetensors")

    monkeypatch.setattr(module, "write_ranges", write_and_touch)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        slice_adapter(adapter, plan_without(base, (0,)), tmp_path / "place" / "out")
    assert not list((tmp_path / "place").iterdir())
