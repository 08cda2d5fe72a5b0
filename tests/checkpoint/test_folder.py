"""Opening checkpoint folders: what is refused, and what identifies a model."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from depthcut.architectures.table import ARCHITECTURES
from depthcut.checkpoint.companions import companions
from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import ArchitectureError, CheckpointError
from tests.tiny import TINY_TYPES, build_tiny, save_tiny

INDEX = "model.safetensors.index.json"


@pytest.fixture
def single(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "single"))


@pytest.fixture
def sharded(tiny_llama_sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama_sharded, tmp_path / "sharded"))


def edit(file: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def digest(folder: Path) -> str:
    return model_facts(open_checkpoint(folder), source="x").digest


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", TINY_TYPES)
def test_facts_agree_with_the_model_in_memory(
    tmp_path: Path, model_type: str, *, tied: bool
) -> None:
    model = build_tiny(model_type, tied=tied).to(torch.bfloat16)
    save_tiny(model, tmp_path)
    facts = model_facts(open_checkpoint(tmp_path), source="tiny")
    stack = model.get_submodule(ARCHITECTURES[model_type].stacks[0])
    counts = tuple(sum(each.numel() for each in layer.parameters()) for layer in stack)
    assert facts.layer_parameters == counts
    assert facts.parameters == sum(each.numel() for each in model.parameters())
    assert facts.weight_bytes == 2 * facts.parameters
    assert (facts.dtype, facts.model_type) == ("bfloat16", model_type)
    assert (facts.layers, facts.hidden_size) == (6, 48)


def test_old_buffers_are_no_parameters(tmp_path: Path) -> None:
    model = build_tiny("gpt2")
    save_tiny(model, tmp_path)
    before = model_facts(open_checkpoint(tmp_path), source="x")
    weights = load_file(tmp_path / "model.safetensors")
    weights["transformer.h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    after = model_facts(open_checkpoint(tmp_path), source="x")
    assert after.layer_parameters == before.layer_parameters
    assert after.weight_bytes == before.weight_bytes + 256


# --- digest ------------------------------------------------------------------------------------


def test_the_digest_is_the_same_however_the_tensors_are_spread(
    tiny_llama: Path, tiny_llama_sharded: Path
) -> None:
    assert digest(tiny_llama) == digest(tiny_llama_sharded)


def test_the_digest_ignores_who_saved_the_model(single: Path) -> None:
    before = digest(single)
    edit(single / "config.json", lambda c: c.update(transformers_version="1", _name_or_path="/x"))
    assert digest(single) == before


@pytest.mark.parametrize("what", ["config", "weight", "dtype", "name"])
def test_the_digest_changes_with_the_model(single: Path, what: str) -> None:
    before = digest(single)
    file = single / "model.safetensors"
    weights = load_file(file)
    if what == "config":
        edit(single / "config.json", lambda config: config.update(rms_norm_eps=0.1))
    elif what == "weight":
        weights["model.layers.3.mlp.up_proj.weight"][0, 0] += 1
    elif what == "dtype":
        weights["model.norm.weight"] = weights["model.norm.weight"].half()
    else:
        weights["another"] = weights.pop("model.norm.weight")
    save_file(weights, file, metadata={"format": "pt"})
    assert digest(single) != before


# --- refusals ----------------------------------------------------------------------------------


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_no_config(single: Path) -> None:
    (single / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(single)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold a JSON object, found list"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON in UTF-8"),
        (b'{"a":' * 100_000, "is not JSON"),
    ],
)
def test_config_that_is_no_object(single: Path, content: bytes, message: str) -> None:
    (single / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(single)


def test_no_weights(single: Path) -> None:
    (single / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: model\.safetensors or"):
        open_checkpoint(single)


def test_weights_under_another_name_are_pointed_out(single: Path) -> None:
    (single / "model.safetensors").rename(single / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"found weights\.safetensors"):
        open_checkpoint(single)


def test_weights_that_the_config_names_are_found(single: Path) -> None:
    before = model_facts(open_checkpoint(single), source="x")
    (single / "model.safetensors").rename(single / "weights.safetensors")
    edit(single / "config.json", lambda c: c.update(transformers_weights="weights.safetensors"))
    assert model_facts(open_checkpoint(single), source="x").parameters == before.parameters


@pytest.mark.parametrize("name", ["../w.safetensors", "/w.safetensors", "w.bin", ""])
def test_a_weights_name_outside_the_folder_is_refused(single: Path, name: str) -> None:
    edit(single / "config.json", lambda c: c.update(transformers_weights=name))
    with pytest.raises(CheckpointError, match="must be the name of a safetensors file"):
        open_checkpoint(single)


def test_a_weights_name_that_is_missing(single: Path) -> None:
    edit(single / "config.json", lambda c: c.update(transformers_weights="w.safetensors"))
    with pytest.raises(CheckpointError, match=r"has no w\.safetensors, which its config"):
        open_checkpoint(single)


def test_only_pickled_weights(single: Path) -> None:
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"only pytorch_model\.bin: .*--allow-pickle.*save_pretrained"
    ):
        open_checkpoint(single)


def test_truncated_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is damaged"):
        open_checkpoint(sharded)


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"names {shard.name}, which is missing"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\0b", "a\\b"]
)
def test_an_index_that_leaves_its_folder(sharded: Path, name: str) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].update(x=name))
    with pytest.raises(CheckpointError, match="no file of its folder: refused"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}])
def test_an_index_without_a_map(sharded: Path, weight_map: object) -> None:
    edit(sharded / INDEX, lambda index: index.update(weight_map=weight_map))
    with pytest.raises(CheckpointError, match="must hold weight_map"):
        open_checkpoint(sharded)


def test_an_index_that_promises_more_than_the_shards_hold(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors")).name
    edit(sharded / INDEX, lambda index: index["weight_map"].update(ghost=shard))
    with pytest.raises(CheckpointError, match=rf"'ghost' is promised .* not in {shard}"):
        open_checkpoint(sharded)


def test_an_index_that_says_less_than_the_shards_hold(sharded: Path) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].pop("model.norm.weight"))
    with pytest.raises(CheckpointError, match="index does not say"):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    weights = load_file(second)
    name, value = next(iter(load_file(first).items()))
    save_file({**weights, name: value}, second, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' lies in 2 shards"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("layers", [5, 7])
def test_config_and_weights_of_different_depth(single: Path, layers: int) -> None:
    edit(single / "config.json", lambda config: config.update(num_hidden_layers=layers))
    with pytest.raises(CheckpointError, match=rf"speaks of {layers} layers, the weights hold 6"):
        model_facts(open_checkpoint(single), source="x")


def test_a_model_type_that_is_not_supported(single: Path) -> None:
    changes = {"model_type": "qwen9", "num_hidden_layers": 5}
    edit(single / "config.json", lambda config: config.update(changes))
    with pytest.raises(ArchitectureError, match=r"'qwen9' is not in depthcut's table \(did you"):
        model_facts(open_checkpoint(single), source="x")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"a":' * 200 + b"1" + b"}" * 200, id="deep"),
        pytest.param(b'{"a": "\\ud800"}', id="half a character"),
        pytest.param(b'{"a": ' + b"9" * 100_000 + b"}", id="a number of 100,000 digits"),
    ],
)
def test_config_that_cannot_be_written_again(single: Path, content: bytes) -> None:
    (single / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not JSON|nested more than 100 deep"):
        open_checkpoint(single)


@pytest.mark.parametrize("layers", [10**12, 2**31 - 1])
def test_an_absurd_number_of_layers_takes_no_memory(single: Path, layers: int) -> None:
    edit(single / "config.json", lambda config: config.update(num_hidden_layers=layers))
    with pytest.raises(CheckpointError, match=rf"{layers}"):
        model_facts(open_checkpoint(single), source="x")


@pytest.mark.parametrize("name", ["x" * 300, "a\nb", "a\x1b[31mb"])
def test_an_index_with_a_name_that_no_file_has(sharded: Path, name: str) -> None:
    edit(sharded / INDEX, lambda index: index["weight_map"].update(x=name))
    with pytest.raises(CheckpointError, match="no file of its folder: refused"):
        open_checkpoint(sharded)


# --- links -------------------------------------------------------------------------------------


def moved_out(file: Path, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    file.rename(place / file.name)
    file.symlink_to(place / file.name)
    return place / file.name


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md"])
def test_a_link_out_of_the_folder_is_refused(single: Path, tmp_path: Path, name: str) -> None:
    (single / "README.md").write_text("# A model")
    real = moved_out(single / name, tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError,
        match=rf"{name} is a link to {real}, outside of its folder: refused; give the folder that",
    ):
        open_checkpoint(single)


@pytest.mark.parametrize("which", [INDEX, "shard"])
def test_a_link_of_a_shard_or_index_is_refused(sharded: Path, tmp_path: Path, which: str) -> None:
    file = sharded / which if which == INDEX else min(sharded.glob("*.safetensors"))
    moved_out(file, tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="outside of its folder: refused"):
        open_checkpoint(sharded)


def test_companions_that_are_links_out_of_the_folder_are_refused(
    single: Path, tmp_path: Path
) -> None:
    assert list(companions(single, {}))
    moved_out(single / "tokenizer.json", tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is a link to"):
        list(companions(single, {}))


def test_a_folder_of_companions_that_is_a_link_is_refused(single: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "passwd").write_text("x")
    (single / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="passwd is a link to"):
        list(companions(single, {}))


def test_links_within_the_folder_and_to_the_folder_are_followed(
    single: Path, tmp_path: Path
) -> None:
    before = digest(single)
    (single / "model.safetensors").rename(single / "weights")
    (single / "model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to(single)
    assert digest(tmp_path / "link") == before


def test_the_cache_of_hub_snapshots_is_followed(single: Path, tmp_path: Path) -> None:
    before, home = digest(single), tmp_path / "models--x--y"
    (home / "snapshots" / "0123").mkdir(parents=True)
    (home / "blobs").mkdir()
    for number, file in enumerate(single.iterdir()):
        shutil.copy(file, home / "blobs" / str(number))
        (home / "snapshots" / "0123" / file.name).symlink_to(f"../../blobs/{number}")
    assert digest(home / "snapshots" / "0123") == before
    (home / "blobs" / "secret").symlink_to(tmp_path)
    (home / "snapshots" / "0123" / "README.md").symlink_to("../../blobs/secret/x")
    with pytest.raises(CheckpointError, match="outside of its folder"):
        digest(home / "snapshots" / "0123")


def test_what_is_no_file_is_as_good_as_missing(single: Path) -> None:
    for name, message in (("model.safetensors", "no weights"), ("config.json", "no config")):
        (single / name).unlink()
        os.mkfifo(single / name)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(single)
    (single / "config.json").unlink()
    (single / "config.json").mkdir()
    with pytest.raises(CheckpointError, match="no config"):
        open_checkpoint(single)
    (single / "config.json").rmdir()
    (single / "config.json").symlink_to("config.json")
    with pytest.raises(CheckpointError, match="no config"):
        open_checkpoint(single)


def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a PEFT adapter"):
        open_checkpoint(tmp_path)
