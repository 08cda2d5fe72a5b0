"""Quantised checkpoints: every byte is carried, and what is said of modules follows the layers."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from depthcut.checkpoint.folder import open_checkpoint
from depthcut.checkpoint.headers import DTYPE_BITS, encode_header
from depthcut.slicing import slice_checkpoint
from tests.slices import arranged, logits, logits_without, plan_without
from tests.tiny import build_tiny, save_tiny

pytestmark = pytest.mark.filterwarnings("ignore")

LAYERS = 6
REMOVED = (1, 4)
KEPT = (0, 2, 3, 5)


# --- bitsandbytes, for real --------------------------------------------------------------------

BITSANDBYTES = {
    "nf4": BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head", "model.layers.2.mlp", "model.layers.4", "layers.5.mlp"],
    ),
    "fp4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "int8": BitsAndBytesConfig(
        load_in_8bit=True, llm_int8_skip_modules=["lm_head", "model.layers.3.self_attn"]
    ),
}


@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_bitsandbytes_models_equal_deletion_in_memory(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    save_tiny(build_tiny("llama", hidden_size=64, head_dim=16), tmp_path / "plain")
    load_quantised(tmp_path / "plain", BITSANDBYTES[kind]).save_pretrained(tmp_path / "parent")
    parent = load_quantised(tmp_path / "parent")
    plan = plan_without(tmp_path / "parent", REMOVED)
    slice_checkpoint(tmp_path / "parent", plan, tmp_path / "out")
    cut = load_quantised(tmp_path / "out")
    assert torch.equal(logits(cut), logits_without(parent, "model.layers", REMOVED))
    for new, old in enumerate(KEPT):
        before, after = parent.model.layers[old], cut.model.layers[new]
        assert kinds(after) == kinds(before)
    assert len(set(map(str, map(kinds, cut.model.layers)))) == (1 if kind == "fp4" else 2)


def load_quantised(folder: Path, config: BitsAndBytesConfig | None = None) -> PreTrainedModel:
    """Fails if any tensor is missing, unexpected or misshapen."""
    options = {"quantization_config": config} if config else {}
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(info.values()), info
    return model.eval()


def kinds(layer: torch.nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in layer.named_modules()]


# --- other formats, by their names and bytes ---------------------------------------------------

GROUP, OUT, IN = 8, 16, 32
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Of a linear layer, by the end of the name: dtype and shape."""

GPTQ: Tensors = {
    "qweight": ("I32", (IN // 8, OUT)),
    "qzeros": ("I32", (IN // GROUP, OUT // 8)),
    "scales": ("F16", (IN // GROUP, OUT)),
    "g_idx": ("I32", (IN,)),
}
AWQ: Tensors = {
    "qweight": ("I32", (IN, OUT // 8)),
    "qzeros": ("I32", (IN // GROUP, OUT // 8)),
    "scales": ("F16", (IN // GROUP, OUT)),
}
FP8: Tensors = {"weight": ("F8_E4M3", (OUT, IN)), "weight_scale_inv": ("F32", (1, 1))}
FP8_STATIC: Tensors = {
    "weight": ("F8_E4M3", (OUT, IN)),
    "weight_scale": ("BF16", (OUT, 1)),
    "input_scale": ("F32", ()),
}
PACKED: Tensors = {
    "weight_packed": ("I32", (OUT, IN // 8)),
    "weight_scale": ("BF16", (OUT, IN // GROUP)),
    "weight_shape": ("I64", (2,)),
    "weight_zero_point": ("I32", (OUT // 8, IN // GROUP)),
    "weight_g_idx": ("I32", (IN,)),
}
NVFP4: Tensors = {
    "weight_packed": ("U8", (OUT, IN // 2)),
    "weight_scale": ("F8_E4M3", (OUT, IN // GROUP)),
    "weight_global_scale": ("F32", (1,)),
    "input_global_scale": ("F32", (1,)),
}
MXFP4: Tensors = {"_blocks": ("U8", (4, OUT, 2, 16)), "_scales": ("U8", (4, OUT, 2))}
EVERY: Tensors = {f"as_{dtype}": (dtype, (3, 8)) for dtype in DTYPE_BITS} | {
    "scalar": ("F32", ()),
    "empty": ("BF16", (0, 4)),
    "odd": ("U8", (7,)),
}


def llama(tmp_path: Path, linear: Tensors, **config: object) -> Path:
    """A checkpoint whose linear layers are stored by these tensors, all of random bytes."""
    tensors = {"model.embed_tokens.weight": ("BF16", (20, IN)), "lm_head.weight": ("F16", (20, IN))}
    for layer in range(LAYERS):
        for module in ("self_attn.q_proj", "mlp.experts.2.down_proj", "mlp.gate_up_proj"):
            for name, entry in linear.items():
                dot = "" if name.startswith("_") else "."
                tensors[f"model.layers.{layer}.{module}{dot}{name}"] = entry
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = ("BF16", (IN,))
    folder = tmp_path / "parent"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    sizes = {
        name: torch.Size(shape).numel() * DTYPE_BITS[dtype] // 8
        for name, (dtype, shape) in tensors.items()
    }
    head = encode_header(
        ((name, *tensors[name], sizes[name]) for name in tensors), {"format": "pt"}
    )
    body = torch.randint(0, 256, (sum(sizes.values()),), dtype=torch.uint8, generator=generator)
    (folder / "model.safetensors").write_bytes(head + body.numpy().tobytes())
    basic = {"model_type": "llama", "num_hidden_layers": LAYERS, "hidden_size": IN}
    (folder / "config.json").write_text(json.dumps({**basic, **config}))
    return folder


def cut_config(folder: Path, out: Path, kept: tuple[int, ...] = KEPT) -> dict:
    """Cut, check that every tensor's dtype, shape and bytes are the parent's; the new config."""
    plan = arranged(plan_without(folder, (1,)), *((layer, layer + 1) for layer in kept))
    slice_checkpoint(folder, plan, out)
    before, after = open_checkpoint(folder).tensors, open_checkpoint(out).tensors
    expected = {name: name for name in before if ".layers." not in name}
    for new, old in enumerate(kept):
        start = f"model.layers.{old}."
        expected |= {
            f"model.layers.{new}.{name.removeprefix(start)}": name
            for name in before
            if name.startswith(start)
        }
    assert after.keys() == expected.keys()
    contents = {path: (path / "model.safetensors").read_bytes() for path in (folder, out)}
    for name, old_name in expected.items():
        new_entry, old_entry = after[name], before[old_name]
        assert (new_entry.dtype, new_entry.shape) == (old_entry.dtype, old_entry.shape)
        new_bytes = contents[out][new_entry.start : new_entry.stop]
        assert new_bytes == contents[folder][old_entry.start : old_entry.stop], name
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("kept", [KEPT, (0,), (5, 3, 3, 0)], ids=str)
@pytest.mark.parametrize(
    "linear",
    [GPTQ, AWQ, FP8, FP8_STATIC, PACKED, NVFP4, MXFP4, EVERY],
    ids=["gptq", "awq", "fp8", "fp8 static", "packed", "nvfp4", "mxfp4", "every dtype"],
)
def test_every_tensor_is_carried_byte_for_byte(
    tmp_path: Path, linear: Tensors, kept: tuple[int, ...]
) -> None:
    folder = llama(tmp_path, linear)
    assert cut_config(folder, tmp_path / "out", kept)["num_hidden_layers"] == len(kept)
    dtypes = {entry.dtype for entry in open_checkpoint(tmp_path / "out").tensors.values()}
    assert dtypes >= {dtype for dtype, _ in linear.values()}


GPTQ_CONFIG = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": GROUP,
    "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.gate_up_proj"]],
    "block_name_to_quantize": "model.layers",
    "dynamic": {
        r"+:.*\.2\..*gate.*": {"bits": 8, "group_size": 16},
        r"-:.*\.4\..*": {},
        r"+:model\.layers\.(3|4)\.self_attn.*": {"bits": 3},
        r"-:.*down.*": {},
        "lm_head": {"bits": 8},
    },
}


def test_gptq_s_dynamic_rules_follow_the_layers_in_both_files(tmp_path: Path) -> None:
    folder = llama(tmp_path, GPTQ, quantization_config=GPTQ_CONFIG)
    (folder / "quantize_config.json").write_text(json.dumps(GPTQ_CONFIG))
    config = cut_config(folder, tmp_path / "out")["quantization_config"]
    assert config["dynamic"] == {
        r"+:.*\b(?:layers)\.(1)\..*gate.*": {"bits": 8, "group_size": 16},
        r"+:.*(?<!\blayers)\.2\..*gate.*": {"bits": 8, "group_size": 16},  # the third expert
        r"-:.*(?<!\blayers)\.4\..*": {},
        r"+:model\.layers\.2\.self_attn.*": {"bits": 3},
        r"-:.*down.*": {},
        "lm_head": {"bits": 8},
    }
    assert next(iter(config["dynamic"])).startswith("+"), "the first rule that matches holds"
    assert {key: value for key, value in config.items() if key != "dynamic"} == {
        key: value for key, value in GPTQ_CONFIG.items() if key != "dynamic"
    }
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text()) == config


def test_awq_s_modules_to_not_convert_follow_the_layers(tmp_path: Path) -> None:
    names = ["lm_head", "model.layers.1.mlp", "model.layers.3.self_attn", "gate", "layers.5.mlp"]
    quantization = {"quant_method": "awq", "bits": 4, "modules_to_not_convert": names}
    folder = llama(tmp_path, AWQ, quantization_config=quantization)
    (folder / "quant_config.json").write_text(json.dumps({"modules_to_not_convert": names}))
    expected = ["lm_head", "model.layers.2.self_attn", "gate", "layers.3.mlp"]
    config = cut_config(folder, tmp_path / "out")["quantization_config"]
    assert config == {**quantization, "modules_to_not_convert": expected}
    beside = json.loads((tmp_path / "out" / "quant_config.json").read_text())
    assert beside == {"modules_to_not_convert": expected}


def test_compressed_tensors_groups_and_ignore_lists_follow_the_layers(tmp_path: Path) -> None:
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "ignore": [
            "lm_head",
            "re:.*mlp.gate$",
            "model.layers.0.self_attn.q_proj",
            "model.layers.4.self_attn.q_proj",
            r"re:.*layers\.[2-5]\.mlp\.gate_up_proj",
        ],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}},
            "group_1": {
                "targets": [
                    r"re:model\.layers\.(0|1|5)\.mlp\..*",
                    "model.layers.3.mlp.gate_up_proj",
                ],
                "weights": {"num_bits": 8},
            },
        },
        "sparsity_config": {"ignore": ["model.layers.1.mlp.gate_up_proj"]},
    }
    folder = llama(tmp_path, PACKED, quantization_config=quantization)
    config = cut_config(folder, tmp_path / "out")["quantization_config"]
    assert config["ignore"] == [
        "lm_head",
        "re:.*mlp.gate$",
        "model.layers.0.self_attn.q_proj",
        r"re:.*layers\.(1|2|3)\.mlp\.gate_up_proj",
    ]
    assert config["config_groups"]["group_0"] == quantization["config_groups"]["group_0"]
    assert config["config_groups"]["group_1"]["targets"] == [
        r"re:model\.layers\.(0|3)\.mlp\..*",
        "model.layers.2.mlp.gate_up_proj",
    ]
    assert config["sparsity_config"]["ignore"] == []


def test_fp8_and_modelopt_names_and_wildcards_follow_the_layers(tmp_path: Path) -> None:
    quantization = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.layers.5.mlp", "model.layers.1.mlp"],
    }
    folder = llama(tmp_path, FP8, quantization_config=quantization)
    modelopt = {"quantization": {"exclude_modules": ["lm_head", "model.layers.2*", "*.layers.4.*"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(modelopt))
    config = cut_config(folder, tmp_path / "out")["quantization_config"]
    assert config["modules_to_not_convert"] == ["lm_head", "model.layers.3.mlp"]
    beside = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    assert beside["quantization"]["exclude_modules"] == ["lm_head", "model.layers.1.*"]


def test_mxfp4_s_names_without_numbers_stay(tmp_path: Path) -> None:
    names = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    quantization = {"quant_method": "mxfp4", "modules_to_not_convert": names}
    folder = llama(tmp_path, MXFP4, quantization_config=quantization)
    assert cut_config(folder, tmp_path / "out")["quantization_config"] == quantization


def test_settings_by_module_follow_the_layers_as_auto_round_writes_them(tmp_path: Path) -> None:
    extra = {f"model.layers.{layer}.mlp.gate": {"bits": layer} for layer in range(LAYERS)}
    quantization = {"quant_method": "auto-round", "extra_config": {**extra, ".*lm_head": {}}}
    folder = llama(tmp_path, GPTQ, quantization_config=quantization)
    config = cut_config(folder, tmp_path / "out", (5, 3, 3))["quantization_config"]
    assert config["extra_config"] == {
        "model.layers.0.mlp.gate": {"bits": 5},
        "model.layers.1.mlp.gate": {"bits": 3},
        "model.layers.2.mlp.gate": {"bits": 3},
        ".*lm_head": {},
    }
