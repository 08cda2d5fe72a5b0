"""Slicing against deletion in memory, for every architecture of the table."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from depthcut.architectures.table import ARCHITECTURES
from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError, OutputError, PlanError
from depthcut.records import Plan, SliceRecord, read_record
from depthcut.slicing import slice_checkpoint, slice_inputs
from tests.slices import TOKENS, arranged, load_exactly, logits, logits_without, plan_without
from tests.tiny import TINY_TYPES, build_tiny, save_tiny, tiny_tokenizer

CUTS = [(0,), (5,), (2, 3), (0, 1, 2), (1, 4), (1, 2, 3, 4), (0, 2, 4), (1, 3, 5), (0, 1, 2, 4, 5)]
"""First, last, a block, sliding or full attention only, several blocks, a single layer left."""
FEW_CUTS = [(0,), (2, 3), (0, 2, 4), (1, 3, 5)]
SHARD_BYTES = {"single": 10**9, "sharded": 100_000}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "gemma3_text with one full layer": ("gemma3_text", {"sliding_window_pattern": 6}),
    "gpt2 without final scaling": ("gpt2", {"reorder_and_upcast_attn": True}),
    "opt with norms after": ("opt", {"do_layer_norm_before": False}),
    "opt without projection": ("opt", {"word_embed_proj_dim": 48}),
    "qwen2 with full attention": ("qwen2", {"use_sliding_window": False}),
    "qwen3_moe with experts everywhere": (
        "qwen3_moe",
        {"decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "qwen3_moe with dense layers first": (
        "qwen3_moe",
        {"decoder_sparse_step": 1, "mlp_only_layers": [0, 1]},
    ),
    "qwen3_moe with every third layer sparse": (
        "qwen3_moe",
        {"decoder_sparse_step": 3, "mlp_only_layers": []},
    ),
}


class Parent(NamedTuple):
    model: PreTrainedModel
    folder: Path
    stack: str


def parent_of(
    tmp_path: Path,
    model_type: str,
    *,
    files: str = "single",
    tied: bool | None = None,
    **changes: object,
) -> Parent:
    folder = tmp_path / "parent"
    model = build_tiny(model_type, tied=tied, **changes)
    save_tiny(model, folder, max_shard_size=SHARD_BYTES[files])
    return Parent(load_exactly(folder), folder, ARCHITECTURES[model_type].stacks[0])


def assert_equals_deletion(parent: Parent, removed: tuple[int, ...], out: Path) -> None:
    slice_checkpoint(parent.folder, plan_without(parent.folder, removed), out)
    expected = logits_without(parent.model, parent.stack, removed)
    assert not torch.equal(expected, logits(parent.model)), "the oracle removed nothing"
    assert torch.equal(logits(load_exactly(out)), expected)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("files", SHARD_BYTES)
@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_sliced_equals_deleted_in_memory(
    tmp_path: Path, model_type: str, files: str, *, tied: bool
) -> None:
    parent = parent_of(tmp_path, model_type, files=files, tied=tied)
    shards = len(list(parent.folder.glob("*.safetensors")))
    assert shards > 3 if files == "sharded" else shards == 1
    for number, removed in enumerate(CUTS if (files, tied) == ("single", False) else FEW_CUTS):
        assert_equals_deletion(parent, removed, tmp_path / str(number))


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_that_speak_of_layers_are_cut(tmp_path: Path, variant: str) -> None:
    model_type, changes = VARIANTS[variant]
    parent = parent_of(tmp_path, model_type, **changes)
    for number, removed in enumerate(FEW_CUTS):
        assert_equals_deletion(parent, removed, tmp_path / str(number))


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text", "qwen2", "qwen3"])
def test_layer_types_that_the_class_fills_in_are_cut_too(tmp_path: Path, model_type: str) -> None:
    # Older checkpoints on the hub have no layer_types; the class derives them from the index.
    parent = parent_of(tmp_path, model_type)
    config = json.loads((parent.folder / "config.json").read_text())
    del config["layer_types"]
    (parent.folder / "config.json").write_text(json.dumps(config))
    for number, removed in enumerate(FEW_CUTS):
        assert_equals_deletion(parent, removed, tmp_path / str(number))


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_checkpoints_of_the_bare_decoder_are_sliced(tmp_path: Path, model_type: str) -> None:
    # The original GPT-2 files name tensors h.0..., without the transformer. in front.
    parent = parent_of(tmp_path, model_type, tied=True)
    parent.model.base_model.save_pretrained(parent.folder)
    names = open_checkpoint(parent.folder).tensors
    assert not any(name.startswith(parent.stack) for name in names)
    removed = (1, 2)
    slice_checkpoint(parent.folder, plan_without(parent.folder, removed), tmp_path / "out")
    sliced = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(logits(sliced), logits_without(parent.model, parent.stack, removed))


@pytest.mark.parametrize("model_type", ["gemma3_text", "llama", "qwen3_moe"])
def test_sliced_models_generate_with_their_cache(tmp_path: Path, model_type: str) -> None:
    parent = parent_of(tmp_path, model_type)
    slice_checkpoint(parent.folder, plan_without(parent.folder, (0, 3)), tmp_path / "out")
    model = load_exactly(tmp_path / "out")
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    cached = model.generate(TOKENS[:1], **options)
    assert torch.equal(cached, model.generate(TOKENS[:1], use_cache=False, **options))


def test_inverse_layer_scaling_allows_only_the_last_layers_to_go(tmp_path: Path) -> None:
    parent = parent_of(tmp_path, "gpt2", scale_attn_by_inverse_layer_idx=True)
    assert_equals_deletion(parent, (4, 5), tmp_path / "last")
    with pytest.raises(ArchitectureError, match=r"scale_attn_by_inverse.* works: layers 4–5"):
        slice_checkpoint(parent.folder, plan_without(parent.folder, (1, 2)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model_type", "slices"),
    [
        ("llama", [(0, 4), (2, 6)]),
        ("llama", [(3, 6), (0, 3)]),
        ("gemma3_text", [(0, 3), (0, 3), (5, 6)]),
        ("qwen3_moe", [(4, 6), (1, 3), (2, 3)]),
    ],
)
def test_layers_can_be_repeated_and_reordered(
    tmp_path: Path, model_type: str, slices: list[tuple[int, int]]
) -> None:
    parent = parent_of(tmp_path, model_type, files="sharded")
    plan = arranged(plan_without(parent.folder, (2,)), *slices)
    record = slice_checkpoint(parent.folder, plan, tmp_path / "out")
    order = [layer for start, stop in slices for layer in range(start, stop)]
    assert record.result.layers == len(order)
    layers = parent.model.get_submodule(parent.stack)
    parent.model.set_submodule(parent.stack, nn.ModuleList(layers[layer] for layer in order))
    parent.model.config.num_hidden_layers = len(order)
    if types := getattr(parent.model.config, "layer_types", None):
        parent.model.config.layer_types = [types[layer] for layer in order]
    assert torch.equal(logits(load_exactly(tmp_path / "out")), logits(parent.model))


def test_a_reordered_leading_count_is_refused(tmp_path: Path) -> None:
    parent = parent_of(tmp_path, "qwen2", use_sliding_window=True, max_window_layers=3)
    plan = arranged(plan_without(parent.folder, (2,)), (3, 6), (0, 3))
    with pytest.raises(
        ArchitectureError, match="max_window_layers and use_sliding_window would have to give"
    ):
        slice_checkpoint(parent.folder, plan, tmp_path / "out")


def test_a_plan_of_another_model_can_be_used_on_a_copy_of_the_same_shape(tmp_path: Path) -> None:
    parent = parent_of(tmp_path, "llama")
    plan = plan_without(parent.folder, (1, 2))
    copy = save_tiny(parent.model.to(torch.bfloat16), tmp_path / "copy")
    with pytest.raises(PlanError, match="say --other-model if this is a copy"):
        slice_checkpoint(copy, plan, tmp_path / "out")
    record = slice_checkpoint(copy, plan, tmp_path / "out", other_model=True)
    assert (record.result.layers, record.result.dtype) == (4, "bfloat16")
    assert record.parent.dtype == "bfloat16"
    card = (tmp_path / "out" / "README.md").read_text()
    assert record.parent.digest in card
    assert "plan.json --other-model --out" in card
    wide = save_tiny(build_tiny("llama", hidden_size=24), tmp_path / "wide")
    with pytest.raises(PlanError, match=r"6 layers of width 48.* has 6 of width 24"):
        slice_checkpoint(wide, plan, tmp_path / "no", other_model=True)


def test_an_unknown_type_is_finished_only_after_its_proof(tmp_path: Path) -> None:
    parent = parent_of(tmp_path, "qwen3")
    config = json.loads((parent.folder / "config.json").read_text())
    config["model_type"] = "news"
    (parent.folder / "config.json").write_text(json.dumps(config))
    plan = plan_without(parent.folder, (0, 4))

    def refuse(folder: Path) -> None:
        assert json.loads((folder / "config.json").read_text())["layer_types"] == [
            config["layer_types"][layer] for layer in (1, 2, 3, 5)
        ]
        raise CheckpointError("it does not load")

    with pytest.raises(CheckpointError, match="does not load"):
        slice_checkpoint(parent.folder, plan, tmp_path / "out", verify=refuse)
    assert not (tmp_path / "out").exists()
    slice_checkpoint(parent.folder, plan, tmp_path / "out", verify=lambda folder: None)
    (tmp_path / "out" / "config.json").write_text(
        (tmp_path / "out" / "config.json").read_text().replace("news", "qwen3")
    )
    expected = logits_without(parent.model, parent.stack, (0, 4))
    assert torch.equal(logits(load_exactly(tmp_path / "out")), expected)


def test_layers_that_only_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    # As layer 61 of DeepSeek-V3: num_nextn_predict_layers beyond num_hidden_layers.
    parent = parent_of(tmp_path, "llama", num_nextn_predict_layers=1)
    weights = load_file(parent.folder / "model.safetensors")
    extra = {
        name.replace("layers.5", "layers.6"): value.clone()
        for name, value in weights.items()
        if "layers.5" in name
    }
    save_file(weights | extra, parent.folder / "model.safetensors", {"format": "pt"})
    plan = plan_without(parent.folder, (1,))
    assert plan.model.layers == 6
    slice_checkpoint(parent.folder, plan, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config["num_nextn_predict_layers"] == 0
    expected = logits_without(parent.model, parent.stack, (1,))
    assert torch.equal(logits(load_exactly(tmp_path / "out")), expected)


# --- files -------------------------------------------------------------------------------------


def test_shards_are_renumbered_and_empty_ones_dropped(
    tiny_llama_sharded: Path, tmp_path: Path
) -> None:
    before = open_checkpoint(tiny_llama_sharded)
    out = tmp_path / "out"
    slice_checkpoint(tiny_llama_sharded, plan_without(tiny_llama_sharded, (1, 2, 3)), out)
    after = open_checkpoint(out)
    names = sorted(path.name for path in out.glob("*.safetensors"))
    count = len(names)
    assert 1 < count < len(before.shards)
    assert names == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert after.index is not None
    assert after.index["metadata"]["total_size"] == after.weight_bytes
    parameters = model_facts(after, source="tiny").parameters
    assert after.index["metadata"]["total_parameters"] == parameters


def test_shard_bytes_spreads_the_weights_anew(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_without(tiny_llama, (2,))
    whole = slice_checkpoint(tiny_llama, plan, tmp_path / "whole")
    spread = slice_checkpoint(tiny_llama, plan, tmp_path / "spread", shard_bytes=60_000)
    assert len(open_checkpoint(tmp_path / "spread").shards) > 3
    assert spread.result.digest == whole.result.digest
    assert torch.equal(
        logits(load_exactly(tmp_path / "spread")), logits(load_exactly(tmp_path / "whole"))
    )
    assert slice_inputs(plan) == whole.origin.inputs != spread.origin.inputs


def test_linking_shares_the_shards_that_stay_as_they_are(
    tiny_llama_sharded: Path, tmp_path: Path
) -> None:
    plan = plan_without(tiny_llama_sharded, (4, 5))
    copied = slice_checkpoint(tiny_llama_sharded, plan, tmp_path / "copied")
    linked = slice_checkpoint(tiny_llama_sharded, plan, tmp_path / "linked", link=True)
    assert linked.result.digest == copied.result.digest
    assert torch.equal(
        logits(load_exactly(tmp_path / "linked")), logits(load_exactly(tmp_path / "copied"))
    )
    parents = {path.stat().st_ino for path in tiny_llama_sharded.glob("*.safetensors")}
    made = {path.stat().st_ino for path in (tmp_path / "copied").glob("*.safetensors")}
    assert not parents & made


def test_tensors_start_at_multiples_of_eight_and_say_their_format(
    tiny_llama: Path, tmp_path: Path
) -> None:
    slice_checkpoint(tiny_llama, plan_without(tiny_llama, (2,)), tmp_path / "out")
    (header,) = open_checkpoint(tmp_path / "out").shards
    assert header.metadata["format"] == "pt"
    assert header.tensors[0].start % 8 == 0


def test_what_holds_is_carried_and_the_rest_left(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parent"
    save_tiny(build_tiny("llama"), folder)
    tiny_tokenizer(folder)
    carried = {
        "LICENSE": "Apache",
        "NOTICE": "notice",
        "USE_POLICY.md": "policy",
        "additional_chat_templates/tools.jinja": "{{ tools }}",
        "special_tokens_map.json": "{}",
        "vocab.tiktoken": "IQ== 0",
    }
    left = [
        *("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "model.onnx"),
        *("consolidated.00.pth", "model-q4.gguf", "flax_model.msgpack", "training_args.bin"),
        *("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json", "params.json"),
        *("original/params.json", "onnx/model.onnx", "checkpoint-5/config.json", "modeling_x.py"),
        *(".gitattributes", "logo.png", "adapter_model.safetensors", "adapter_config.json"),
    ]
    for name, text in {**carried, **dict.fromkeys(left, "x")}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    out = tmp_path / "out"
    slice_checkpoint(folder, plan_without(folder, (2,)), out)
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    ours = {"config.json", "model.safetensors", "README.md", "plan.json", "depthcut.json"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert found == ours | tokenizer | set(carried) | {"generation_config.json"}
    for name, text in carried.items():
        assert (out / name).read_text() == text
    conversation = [{"role": "user", "content": "hi"}]
    tokenizers = [AutoTokenizer.from_pretrained(each) for each in (folder, out)]
    texts = [each.apply_chat_template(conversation, tokenize=False) for each in tokenizers]
    assert texts[0] == texts[1] != ""


def test_code_is_carried_only_where_the_config_asks_for_it(tmp_path: Path) -> None:
    folder = save_tiny(build_tiny("llama"), tmp_path / "parent")
    (folder / "modeling_x.py").write_text("")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_x.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    slice_checkpoint(folder, plan_without(folder, (2,)), tmp_path / "out")
    assert (tmp_path / "out" / "modeling_x.py").exists()


def test_hub_snapshots_of_links_are_sliced_into_real_files(
    tiny_llama_sharded: Path, tmp_path: Path
) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_llama_sharded, blobs)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    slice_checkpoint(snapshot, plan_without(snapshot, (2,)), tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    load_exactly(tmp_path / "out")


def test_quantization_settings_follow_the_layers(tmp_path: Path) -> None:
    folder = save_tiny(build_tiny("llama"), tmp_path / "parent")
    settings = {"modules_to_not_convert": ["lm_head", "model.layers.1.mlp", "model.layers.4.mlp"]}
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    slice_checkpoint(folder, plan_without(folder, (1, 2)), tmp_path / "out")
    after = json.loads((tmp_path / "out" / "quantize_config.json").read_text())
    assert after == {"modules_to_not_convert": ["lm_head", "model.layers.2.mlp"]}


# --- records and card --------------------------------------------------------------------------


def test_record_and_plan_lie_beside_the_weights(tiny_llama: Path, tmp_path: Path) -> None:
    plan, out = plan_without(tiny_llama, (2, 3)), tmp_path / "out"
    record = slice_checkpoint(tiny_llama, plan, out)
    assert read_record(out / "depthcut.json", SliceRecord) == record
    assert read_record(out / "plan.json", Plan) == plan == record.plan
    assert record.result == model_facts(open_checkpoint(out), source=str(out))
    assert record.result.layers == 4
    assert record.result.layer_parameters == plan.model.layer_parameters[2:]
    assert record.origin.inputs == slice_inputs(plan)


def test_the_same_plan_gives_the_same_weights(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_without(tiny_llama, (2, 3))
    first = slice_checkpoint(tiny_llama, plan, tmp_path / "a")
    second = slice_checkpoint(tiny_llama, plan, tmp_path / "b")
    assert first.result.digest == second.result.digest
    for name in ("model.safetensors", "config.json", "plan.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_slice_of_a_slice_equals_one_cut(tiny_llama: Path, tmp_path: Path) -> None:
    slice_checkpoint(tiny_llama, plan_without(tiny_llama, (1,)), tmp_path / "once")
    slice_checkpoint(tmp_path / "once", plan_without(tmp_path / "once", (2, 3)), tmp_path / "twice")
    slice_checkpoint(tiny_llama, plan_without(tiny_llama, (1, 3, 4)), tmp_path / "direct")
    twice, direct = (open_checkpoint(tmp_path / name) for name in ("twice", "direct"))
    facts = [model_facts(each, source="tiny") for each in (twice, direct)]
    assert facts[0] == facts[1]


def test_the_card_keeps_what_holds_of_the_parents(tmp_path: Path) -> None:
    folder = save_tiny(build_tiny("llama"), tmp_path / "parent")
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage:\n- en\ntags:\n- chat\n"
        "base_model: some/grandparent\nmodel-index:\n- name: x\n---\n# Parent\n\nIt scores 99 %.\n"
    )
    plan = plan_without(folder, (2, 3), source="some/parent")
    slice_checkpoint(folder, plan, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "license": "apache-2.0",
        "language": ["en"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "some/parent",
        "tags": ["chat", "depthcut", "pruned"],
    }
    assert "layers 2–3 (2 layers)" in card
    assert plan.model.digest in card
    assert "depthcut slice some/parent plan.json" in card
    assert "model-index" not in card
    assert "99 %" not in card


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no front matter",
        "---\nlicense: &a [*a]\n---\n",
        "---\n[: broken\n---\n",
        "---\n- list\n---\n",
        "---\n[1]: 2\n---\n",
    ],
)
def test_a_card_that_cannot_be_read_is_no_obstacle(tmp_path: Path, text: str) -> None:
    folder = save_tiny(build_tiny("llama"), tmp_path / "parent")
    (folder / "README.md").write_text(text)
    slice_checkpoint(folder, plan_without(folder, (2,)), tmp_path / "out")
    assert 'library_name: "transformers"' in (tmp_path / "out" / "README.md").read_text()


# --- refusals: one line, nothing left ----------------------------------------------------------


def assert_nothing_at(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_a_plan_for_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    other = save_tiny(build_tiny("llama", hidden_size=24), tmp_path / "other")
    out = tmp_path / "place" / "out"
    with pytest.raises(PlanError, match=r"made for the-first .* is another model") as caught:
        slice_checkpoint(other, plan_without(tiny_llama, (2,), source="the-first"), out)
    assert str(other) in str(caught.value)
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("slices", "message"),
    [
        ([(0, 6)], "removes none of 6 layers"),
        ([], "removes all 6 layers"),
        ([(5, 7)], "within the model's layers 0–5"),
        ([(-1, 2)], "within"),
        ([(3, 3)], "within"),
        ([(3, 2)], "within"),
        ([(0, 2, "other")], "layers of other beside those of tiny"),
    ],
)
def test_impossible_plans_are_refused(
    tiny_llama: Path, tmp_path: Path, slices: list[tuple], message: str
) -> None:
    plan = arranged(plan_without(tiny_llama, (2,)), *slices)
    with pytest.raises(PlanError, match=message):
        slice_checkpoint(tiny_llama, plan, tmp_path / "out")
    assert_nothing_at(tmp_path)


def test_an_existing_output_is_never_overwritten(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        slice_checkpoint(tiny_llama, plan_without(tiny_llama, (2,)), tmp_path / "out")
    assert_nothing_at(tmp_path / "out")


def test_an_unknown_architecture_needs_a_proof_before_writing(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = save_tiny(build_tiny("llama"), tmp_path / "parent")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "lama"}))
    with pytest.raises(ArchitectureError, match=r"'lama' is not in depthcut's table.*verified"):
        slice_checkpoint(folder, plan_without(folder, (2,)), tmp_path / "place" / "out")
    assert not (tmp_path / "place").exists()


def test_a_truncated_shard_is_refused_before_writing(tiny_llama: Path, tmp_path: Path) -> None:
    folder = save_tiny(build_tiny("llama"), tmp_path / "parent")
    plan = plan_without(folder, (2,))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        slice_checkpoint(folder, plan, tmp_path / "place" / "out")
    assert not (tmp_path / "place").exists()
