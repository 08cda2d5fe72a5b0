"""A cut is proved, and everything that may be wrong with one is found and named."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from depthcut import api, cli
from depthcut.checkpoint.folder import INDEX_FILE, SINGLE_FILE, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError, PlanError, SourceError
from depthcut.model.verification import check_build
from depthcut.records import Plan, SliceRecord, Verification, read_record, write_record
from depthcut.settings import LoadSettings
from depthcut.slicing import slice_checkpoint, verify_slice
from tests import every_type
from tests.slices import arranged, plan_without
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

REMOVED = (1, 3)


@pytest.fixture
def cut(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model without layers 1 and 3: to break."""
    plan = plan_without(tiny_llama, REMOVED, source=str(tiny_llama))
    slice_checkpoint(tiny_llama, plan, tmp_path / "cut")
    return tmp_path / "cut"


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / SINGLE_FILE)
    change(weights)
    save_file(weights, folder / SINGLE_FILE, {"format": "pt"})


def edit_json(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


def edit_plan(folder: Path, change: Callable[[Plan], Plan]) -> None:
    record = read_record(folder / "depthcut.json", SliceRecord)
    edited = msgspec.structs.replace(record, plan=change(record.plan))
    write_record(edited, folder / "depthcut.json", overwrite=True)
    write_record(edited.plan, folder / "plan.json", overwrite=True)


# --- what is right ------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_a_good_cut_of_every_type_is_proved(tmp_path: Path, model_type: str) -> None:
    parent = save_tiny(build_tiny(model_type), tmp_path / "parent")
    # One whose kept layers alternate as before: some types can say no other.
    plan = plan_without(parent, (2, 3))
    slice_checkpoint(parent, plan, tmp_path / "cut")
    found = verify_slice(tmp_path / "cut", parent)
    check_build(tmp_path / "cut", parent, plan.kept_layers)
    made = open_checkpoint(tmp_path / "cut")
    assert (found.tensors, found.tensor_bytes) == (len(made.tensors), made.weight_bytes)
    assert found.config_values >= len(made.config)


@pytest.mark.parametrize("shard_bytes", [None, 60_000])
@pytest.mark.parametrize(
    "slices",
    [[(0, 2), (5, 6)], [(0, 4), (2, 6)], [(3, 6), (0, 3), (5, 6), (5, 6)]],
    ids=["removed", "repeated", "reordered"],
)
def test_a_good_cut_is_proved_however_its_files_are_laid_out(
    tiny_llama_sharded: Path, tmp_path: Path, slices: list[tuple], shard_bytes: int | None
) -> None:
    plan = arranged(plan_without(tiny_llama_sharded, (2,)), *slices)
    out = tmp_path / "cut"
    slice_checkpoint(tiny_llama_sharded, plan, out, shard_bytes=shard_bytes)
    assert (out / INDEX_FILE).exists()
    verify_slice(out, tiny_llama_sharded)
    check_build(out, tiny_llama_sharded, plan.kept_layers)


def test_the_command_proves_and_says_so(
    cut: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(cut)])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "39 tensors" in out
    assert "transformers builds all 4 layers as they were" in out
    with pytest.raises(SystemExit) as caught:
        cli.main(["verify", str(cut), "--against", str(tiny_llama), "--no-load", "--json"])
    record = msgspec.json.decode(capsys.readouterr().out, type=Verification)
    assert (record.tensors, record.loads, record.result.layers) == (39, False, 4)


def test_a_parent_that_is_gone_must_be_named(tiny_llama: Path, tmp_path: Path) -> None:
    plan = plan_without(tiny_llama, REMOVED, source=str(tmp_path / "gone"))
    slice_checkpoint(tiny_llama, plan, tmp_path / "cut")
    with pytest.raises(SourceError, match="--against"):
        api.verify(tmp_path / "cut")
    assert api.verify(tmp_path / "cut", against=tiny_llama).loads


def test_a_cut_by_the_plan_of_another_model_is_proved_against_what_was_cut(
    tiny_llama: Path, tmp_path: Path
) -> None:
    copy = save_tiny(build_tiny("llama").to(torch.bfloat16), tmp_path / "copy")
    slice_checkpoint(copy, plan_without(tiny_llama, (2,)), tmp_path / "cut", other_model=True)
    with pytest.raises(PlanError, match=r"was cut from .*is another model"):
        verify_slice(tmp_path / "cut", tiny_llama)
    assert verify_slice(tmp_path / "cut", copy).parent.dtype == "bfloat16"


def test_layers_that_predict_further_tokens_may_be_missing(tmp_path: Path) -> None:
    parent = save_tiny(build_tiny("llama", num_nextn_predict_layers=1), tmp_path / "parent")
    extra = {"model.layers.6.eh_proj.weight": torch.ones(2, 2)}
    edit_weights(parent, lambda weights: weights.update(extra))
    slice_checkpoint(parent, plan_without(parent, (2,)), tmp_path / "cut")
    assert verify_slice(tmp_path / "cut", parent).result.layers == 5


# --- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_byte_is_found(cut: Path, tiny_llama: Path, where: str) -> None:
    tensors = sorted(open_checkpoint(cut).tensors.values(), key=lambda each: each.start)
    tensor = max(tensors, key=lambda each: each.size_bytes)
    offset = {"first": 0, "middle": 5_000, "last": tensor.size_bytes - 1}[where]
    content = bytearray((cut / SINGLE_FILE).read_bytes())
    content[tensor.start + offset] ^= 1
    (cut / SINGLE_FILE).write_bytes(content)
    says = rf"tensor '{tensor.name}' differs .* from its byte {offset:,} on$"
    with pytest.raises(CheckpointError, match=says):
        verify_slice(cut, tiny_llama)


def test_two_swapped_layers_are_found(cut: Path, tiny_llama: Path) -> None:
    def swap(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if ".layers.1." in name]:
            other = name.replace(".layers.1.", ".layers.2.")
            weights[name], weights[other] = weights[other], weights[name]

    edit_weights(cut, swap)
    says = r"tensor 'model.layers.1.*differs from the parent's 'model.layers.2"
    with pytest.raises(CheckpointError, match=says):
        verify_slice(cut, tiny_llama)


def test_a_swap_within_a_tensor_of_several_chunks_is_found(tmp_path: Path) -> None:
    # 3 MiB: a chunk that is read at a wrong place would hide it.
    parent = save_tiny(build_tiny("llama", vocab_size=1 << 14), tmp_path / "parent")
    slice_checkpoint(parent, plan_without(parent, (2,)), tmp_path / "cut")
    verify_slice(tmp_path / "cut", parent)
    edit_weights(tmp_path / "cut", lambda weights: weights["lm_head.weight"][15_000].add_(1))
    with pytest.raises(CheckpointError, match=f"'lm_head.weight' .* byte {15_000 * 48 * 4:,} on"):
        verify_slice(tmp_path / "cut", parent)


def test_a_missing_tensor_is_found(cut: Path, tiny_llama: Path) -> None:
    edit_weights(cut, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    says = r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing \(the parent's 'model\.layers\.2"
    with pytest.raises(CheckpointError, match=says):
        verify_slice(cut, tiny_llama)
    with pytest.raises(CheckpointError, match=r"does not hold the tensor model\.layers\.1\."):
        check_build(cut, tiny_llama, (0, 2, 4, 5))


def test_an_extra_tensor_is_found(cut: Path, tiny_llama: Path) -> None:
    name = "model.layers.1.mlp.extra.weight"
    edit_weights(cut, lambda weights: weights.update({name: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=rf"'{name}' is none of the parent's"):
        verify_slice(cut, tiny_llama)
    with pytest.raises(CheckpointError, match=rf"the model does not use, the tensor {name}"):
        check_build(cut, tiny_llama, (0, 2, 4, 5))


def test_another_shape_and_dtype_are_found(cut: Path, tiny_llama: Path) -> None:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"] = weights["model.norm.weight"].reshape(2, 24)
        weights["lm_head.weight"] = weights["lm_head.weight"].view(torch.int32)

    edit_weights(cut, change)
    with pytest.raises(CheckpointError) as caught:
        verify_slice(cut, tiny_llama)
    assert "'model.norm.weight' must be F32 of shape [48], found F32 of shape [2, 24]" in str(
        caught.value
    )
    assert "'lm_head.weight' must be F32 of shape [264, 48], found I32" in str(caught.value)
    with pytest.raises(CheckpointError, match="in another shape than its model's the tensor"):
        check_build(cut, tiny_llama, (0, 2, 4, 5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_theta": 5}, "rope_theta must be nothing, found 5"),
        ({"num_hidden_layers": 5}, "num_hidden_layers must be 4, found 5"),
        ({"attention_bias": 0}, "attention_bias must be false, found 0"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_theta must be 10000"),
    ],
)
def test_a_stale_config_field_is_found(
    cut: Path, tiny_llama: Path, changes: dict[str, object], says: str
) -> None:
    edit_json(cut / "config.json", **changes)
    with pytest.raises(CheckpointError, match=f"config.json: {says}"):
        verify_slice(cut, tiny_llama)


def test_a_config_list_left_as_it_was_is_found_twice(tmp_path: Path) -> None:
    parent = save_tiny(build_tiny("qwen3"), tmp_path / "parent")
    plan = plan_without(parent, (0, 1))
    slice_checkpoint(parent, plan, tmp_path / "cut")
    stale = json.loads((parent / "config.json").read_text())["layer_types"][:4]
    edit_json(tmp_path / "cut" / "config.json", layer_types=stale)
    with pytest.raises(CheckpointError, match="layer_types must be"):
        verify_slice(tmp_path / "cut", parent)
    with pytest.raises(ArchitectureError, match="layer 1, which was layer 3, is built otherwise"):
        check_build(tmp_path / "cut", parent, plan.kept_layers)


def test_a_changed_plan_is_found(cut: Path, tiny_llama: Path) -> None:
    edit_plan(cut, lambda plan: arranged(plan, (0, 1), (3, 6)))
    with pytest.raises(CheckpointError, match=r"tensor 'model\.layers\.1.*differs from the parent"):
        verify_slice(cut, tiny_llama)


def test_a_changed_copy_of_the_plan_is_found(cut: Path, tiny_llama: Path) -> None:
    plan = read_record(cut / "plan.json", Plan)
    write_record(arranged(plan, (0, 4)), cut / "plan.json", overwrite=True)
    with pytest.raises(CheckpointError, match=r"plan\.json is not the plan of depthcut\.json"):
        verify_slice(cut, tiny_llama)


def test_a_changed_record_is_found(cut: Path, tiny_llama: Path) -> None:
    record = read_record(cut / "depthcut.json", SliceRecord)
    result = msgspec.structs.replace(record.result, digest="0" * 64)
    edited = msgspec.structs.replace(record, result=result)
    write_record(edited, cut / "depthcut.json", overwrite=True)
    with pytest.raises(CheckpointError, match=r"depthcut\.json: result\.digest must be"):
        verify_slice(cut, tiny_llama)


def test_a_wrong_parent_is_refused(cut: Path, tmp_path: Path) -> None:
    other = save_tiny(build_tiny("llama", rms_norm_eps=0.5), tmp_path / "other")
    with pytest.raises(PlanError, match="another model"):
        verify_slice(cut, other)


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_text("{}"), "is not the parent's"),
    ],
    ids=["missing", "changed"],
)
@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "generation_config.json"]
)
def test_companions_are_compared(
    cut: Path, tiny_llama: Path, name: str, break_it: Callable[[Path], object], says: str
) -> None:
    break_it(cut / name)
    with pytest.raises(CheckpointError, match=f"the file {name} {says}"):
        verify_slice(cut, tiny_llama)


def test_many_findings_are_counted_and_the_first_named(cut: Path, tiny_llama: Path) -> None:
    edit_weights(cut, lambda weights: [each.add_(1) for each in weights.values()])
    with pytest.raises(CheckpointError) as caught:
        verify_slice(cut, tiny_llama)
    assert str(caught.value).count(" differs ") == 3
    assert str(caught.value).endswith("; and 36 more")


# --- what transformers builds -------------------------------------------------------------------


def with_constants_of_depth(folder: Path) -> Path:
    """A llama of a type of its own, whose code gives each layer constants of depth."""
    save_tiny(build_tiny("llama"), folder)
    (folder / "news.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class NewsConfig(LlamaConfig):\n"
        "    model_type = 'news'\n"
        "class NewsForCausalLM(LlamaForCausalLM):\n"
        "    config_class = NewsConfig\n"
        "    def __init__(self, config):\n"
        "        super().__init__(config)\n"
        "        for index, layer in enumerate(self.model.layers):\n"
        "            layer.mlp.scale = 1.0 / (index + 1 if config.by_depth else 1)\n"
    )
    edit_json(
        folder / "config.json",
        model_type="news",
        architectures=["NewsForCausalLM"],
        by_depth=False,
        auto_map={"AutoConfig": "news.NewsConfig", "AutoModelForCausalLM": "news.NewsForCausalLM"},
    )
    return folder


def test_an_unknown_type_is_cut_once_it_is_proved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = with_constants_of_depth(tmp_path / "parent")
    plan = plan_without(parent, (2,), source=str(parent))
    with pytest.raises(Exception, match="--trust-remote-code"):
        api.slice(parent, plan, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    trusting = LoadSettings(trust_remote_code=True)
    api.slice(parent, plan, tmp_path / "cut", load=trusting)
    assert "'news' is not in depthcut's table" in caplog.text
    assert api.verify(tmp_path / "cut", load=trusting).loads


def test_a_constant_of_depth_refuses_the_cut(tmp_path: Path) -> None:
    parent = with_constants_of_depth(tmp_path / "parent")
    edit_json(parent / "config.json", by_depth=True)
    plan = plan_without(parent, (2,))
    says = r"layer 2, which was layer 3, is built otherwise: mlp\.scale is 0\.33.*, was 0\.25"
    with pytest.raises(ArchitectureError, match=says):
        api.slice(parent, plan, tmp_path / "cut", load=LoadSettings(trust_remote_code=True))
    assert not (tmp_path / "cut").exists()
    # The last layers can go: no constant changes.
    plan = plan_without(parent, (4, 5))
    api.slice(parent, plan, tmp_path / "cut", load=LoadSettings(trust_remote_code=True))


@pytest.mark.parametrize(
    ("model_type", "removed"),
    [
        ("big_bird", (2, 3)),  # a seed by depth, for training
        ("gpt_neo", (2, 3)),  # each layer has a copy of the list of all
        ("minimax", (2, 3)),  # its slopes by depth lie in the checkpoint
        ("llava", (2, 3)),  # the module's path is not the checkpoint's
        ("mixtral", (0, 4)),  # experts are merged when loaded
        ("qwen4_exp_text", (2, 3)),  # some tensors cannot be merged without bytes
        ("zamba2", (0, 1)),  # a map of layers that moves with them
    ],
)
def test_types_whose_layers_know_their_place_are_proved(
    tmp_path: Path, model_type: str, removed: tuple[int, ...]
) -> None:
    every_type.build(model_type).save_pretrained(tmp_path / "parent")
    plan = plan_without(tmp_path / "parent", removed)
    api.slice(tmp_path / "parent", plan, tmp_path / "cut")
    check_build(tmp_path / "cut", tmp_path / "parent", plan.kept_layers)


def test_no_weights_are_read_to_build_a_model(tmp_path: Path) -> None:
    parent = save_tiny(build_tiny("mixtral"), tmp_path / "parent")
    plan = plan_without(parent, (2,))
    slice_checkpoint(parent, plan, tmp_path / "cut")
    for folder in (parent, tmp_path / "cut"):
        tensors = open_checkpoint(folder).tensors.values()
        head = (folder / SINGLE_FILE).read_bytes()[: min(each.start for each in tensors)]
        header = json.loads(head[8:])
        grown = _grown(header, times=1 << 22)  # terabytes, as a hole in the file
        body = json.dumps(grown).encode()
        with (folder / SINGLE_FILE).open("wb") as file:
            file.write(len(body).to_bytes(8, "little") + body)
            file.truncate(8 + len(body) + max(_stops(grown)))
        edit_json(folder / "config.json", vocab_size=264 << 22)
    check_build(tmp_path / "cut", parent, plan.kept_layers)


def _stops(header: dict[str, dict]) -> Sequence[int]:
    return [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]


def _grown(header: dict[str, dict], *, times: int) -> dict[str, dict]:
    """The header with a vocabulary so many times as large."""
    position, grown = 0, {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape = list(entry["shape"])
        if 264 in shape:
            shape[shape.index(264)] *= times
        size = 4 * torch.Size(shape).numel()
        grown[name] = {**entry, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    return grown


def test_what_is_left_over_in_the_parent_may_be_left_over_in_the_cut(tmp_path: Path) -> None:
    parent = save_tiny(build_tiny("llama"), tmp_path / "parent")
    name = "model.layers.4.self_attn.k_scale"
    edit_weights(parent, lambda weights: weights.update({name: torch.ones(1)}))
    plan = plan_without(parent, (1, 2))
    slice_checkpoint(parent, plan, tmp_path / "cut")
    check_build(tmp_path / "cut", parent, plan.kept_layers)
    other = name.replace("layers.4", "layers.3")
    edit_weights(tmp_path / "cut", lambda weights: weights.update({other: torch.ones(1)}))
    with pytest.raises(CheckpointError, match=other):
        check_build(tmp_path / "cut", parent, plan.kept_layers)


def test_a_folder_is_proved_after_it_was_moved(cut: Path, tiny_llama: Path, tmp_path: Path) -> None:
    shutil.move(cut, tmp_path / "elsewhere")
    assert verify_slice(tmp_path / "elsewhere", tiny_llama).result.layers == 4
