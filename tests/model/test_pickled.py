"""Pickled weights: what is read is what was saved, and nothing runs."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from depthcut.checkpoint.folder import model_facts, open_checkpoint
from depthcut.errors import CheckpointError, OutputError
from depthcut.model import pickled as module
from depthcut.model.pickled import checkpoint_of_pickle, is_pickled
from depthcut.model.sources import locate
from depthcut.settings import LoadSettings
from tests.hub_stub import address, hub
from tests.slices import load_exactly, logits
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

ALLOWED = LoadSettings(allow_pickle=True)


def pickled(
    folder: Path, model_type: str = "llama", *, tied: bool = False, shards: int = 1
) -> Path:
    """A checkpoint as transformers saved it before safetensors."""
    model = build_tiny(model_type, tied=tied)
    save_tiny(model, folder)
    (folder / "model.safetensors").unlink()
    state = model.state_dict()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    weight_map = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = {key: state[key].clone() for key in list(state)[number::shards]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def bare(folder: Path, state: object, **options: object) -> Path:
    """A folder with a config and these weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(build_tiny("llama").config.to_dict()))
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_it_is_the_same_model(tmp_path: Path, model_type: str, shards: int, *, tied: bool) -> None:
    folder = pickled(tmp_path / "model", model_type, tied=tied, shards=shards)
    made = checkpoint_of_pickle(folder, tmp_path / "cache")
    assert torch.equal(logits(load_exactly(made)), logits(build_tiny(model_type, tied=tied)))
    checkpoint = open_checkpoint(made)
    assert len(checkpoint.shards) == shards
    if shards > 1:
        total = checkpoint.weight_bytes
        assert checkpoint.index is not None
        assert checkpoint.index["metadata"] == {"total_size": total}


def test_tied_tensors_are_stored_once_as_transformers_would(tmp_path: Path) -> None:
    made = checkpoint_of_pickle(pickled(tmp_path / "model", tied=True), tmp_path / "cache")
    own = save_tiny(build_tiny("llama", tied=True), tmp_path / "own")
    names = open_checkpoint(made).tensors.keys()
    assert names == open_checkpoint(own).tensors.keys()
    assert "lm_head.weight" not in names
    facts = [model_facts(open_checkpoint(folder), source="x") for folder in (made, own)]
    assert facts[0].parameters == facts[1].parameters


def test_shared_tensors_that_nothing_ties_are_all_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensor = torch.arange(12.0)
    views = {
        "a": tensor.view(3, 4),
        "b": tensor.view(3, 4),
        "c": tensor.view(4, 3),
        "d": tensor[6:],
    }
    made = checkpoint_of_pickle(bare(tmp_path / "model", views), tmp_path / "cache")
    found = load_file(made / "model.safetensors")
    assert all(torch.equal(found[name], views[name]) for name in views)
    assert "a and b are one tensor" in caplog.text


DTYPES = [getattr(torch, name) for name in module._DTYPES]


def test_every_dtype_and_form_keeps_its_bytes(tmp_path: Path) -> None:
    raw = torch.randint(
        0, 256, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    state = {
        str(dtype): raw.view(dtype).clone() if dtype != torch.bool else raw > 128
        for dtype in DTYPES
    }
    state |= {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 7, dtype=torch.float16),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "strided": torch.arange(10)[::3],
        "parameter": nn.Parameter(torch.ones(2)),
        "conjugated": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
    }
    made = checkpoint_of_pickle(bare(tmp_path / "model", state), tmp_path / "cache")
    found = load_file(made / "model.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert as_bytes(found[name]) == as_bytes(tensor.detach().resolve_conj()), name
    with safe_open(made / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_files_of_the_time_before_zip_are_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(5.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    folder = bare(tmp_path / "model", state, _use_new_zipfile_serialization=False)
    found = load_file(checkpoint_of_pickle(folder, tmp_path / "cache") / "model.safetensors")
    assert all(torch.equal(found[name], state[name]) for name in state)


class Attack:
    """A pickle that would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["zip", "old", "bare pickle"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, form: str
) -> None:
    target = tmp_path / "was-run"
    state = {"a": torch.ones(2), "b": Attack(target)}
    folder = bare(tmp_path / "model", state, _use_new_zipfile_serialization=form == "zip")
    if form == "bare pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(target), protocol=2))
    with pytest.raises(CheckpointError, match=r"bin holds more than tensors .*mkdir.*: refused"):
        checkpoint_of_pickle(folder, tmp_path / "cache")
    assert not target.exists()
    assert not list((tmp_path / "cache").iterdir())
    torch.load(folder / "pytorch_model.bin", weights_only=False) if form != "bare pickle" else None
    assert target.exists() == (form != "bare pickle"), "the attack is none"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([torch.ones(1)], "must hold an object from names to tensors, found list"),
        ({"state_dict": {"a": torch.ones(1)}}, "found dict under 'state_dict'"),
        ({1: torch.ones(1)}, "found Tensor under '1'"),
        ({"epoch": 3}, "found int under 'epoch'"),
        ({"a": torch.eye(3).to_sparse()}, "torch.sparse_coo. has no counterpart"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, "complex128, torch.strided"),
        ({"a": torch.ones(1, dtype=torch.float64).expand(1 << 40)}, "bytes, the file stores 8 of"),
    ],
)
def test_what_is_no_tensor_by_name_is_refused(tmp_path: Path, state: object, message: str) -> None:
    folder = bare(tmp_path / "model", state)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_of_pickle(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("size", [0, 1, 100, -100])
def test_damage_is_refused(tmp_path: Path, size: int) -> None:
    folder = pickled(tmp_path / "model")
    file = folder / "pytorch_model.bin"
    os.truncate(file, size % file.stat().st_size)
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin (is damaged|holds more)"
    ) as caught:
        checkpoint_of_pickle(folder, tmp_path / "cache")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x.bin", "no .bin file of its folder: refused"),
        ("x.pkl", "no .bin file of its folder: refused"),
        (7, "no .bin file of its folder: refused"),
        ("x.bin", "names x.bin, which is missing"),
        ("pytorch_model-00002-of-00003.bin", "disagrees with .* on tensor 'model.embed_tok"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, name: object, message: str) -> None:
    folder = pickled(tmp_path / "model", shards=3)
    file = folder / "pytorch_model.bin.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.embed_tokens.weight"] = name
    file.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        checkpoint_of_pickle(folder, tmp_path / "cache")


def test_it_is_made_once_and_known_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(tmp_path / "model")
    made = checkpoint_of_pickle(folder, tmp_path / "cache")

    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(module, "_convert", never)
    assert checkpoint_of_pickle(folder, tmp_path / "cache") == made
    file = folder / "pytorch_model.bin"
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    module._content.cache_clear()  # as in another process
    with pytest.raises(AssertionError, match="made again"):
        checkpoint_of_pickle(folder, tmp_path / "cache")


def test_weights_changed_while_they_are_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pickled(tmp_path / "model")
    convert = module._convert

    def convert_and_change(*args: object) -> None:
        convert(*args)
        with (folder / "pytorch_model.bin").open("ab") as stream:
            stream.write(b"more")

    monkeypatch.setattr(module, "_convert", convert_and_change)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        checkpoint_of_pickle(folder, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_another_process_may_be_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pickled(tmp_path / "model")

    def convert(_: Path, __: object, working: Path) -> None:
        working.with_name(working.name.removeprefix(".").partition(".partial")[0]).mkdir()

    monkeypatch.setattr(module, "_convert", convert)
    assert checkpoint_of_pickle(folder, tmp_path / "cache").is_dir()


def test_a_cache_that_cannot_be_written_says_how_to_move_it(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match="DEPTHCUT_CACHE"):
        checkpoint_of_pickle(pickled(tmp_path / "model"), tmp_path / "taken" / "cache")


def test_tokenizer_card_and_generation_config_come_along(tmp_path: Path) -> None:
    folder = pickled(tmp_path / "model")
    tiny_tokenizer(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "training_args.bin").write_bytes(b"x")
    made = checkpoint_of_pickle(folder, tmp_path / "cache")
    assert (made / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert (made / "README.md").read_text() == "---\nlicense: mit\n---\n"
    assert (made / "generation_config.json").is_file()
    assert AutoTokenizer.from_pretrained(made).chat_template
    assert not list(made.glob("*.bin*"))


def test_it_is_read_only_when_allowed_and_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "cache"))
    folder = pickled(tmp_path / "model")
    assert locate(folder, LoadSettings()) == folder
    with pytest.raises(CheckpointError, match=r"only pytorch_model\.bin: .*--allow-pickle"):
        open_checkpoint(locate(folder, LoadSettings()))
    assert locate(folder, ALLOWED).parent == tmp_path / "cache"
    save_tiny(build_tiny("llama"), folder)
    assert not is_pickled(folder)
    assert locate(folder, ALLOWED) == folder


@pytest.mark.parametrize("allowed", [True, False])
def test_from_the_hub_bin_files_are_fetched_only_when_allowed(
    tmp_path: Path, *, allowed: bool
) -> None:
    folder = pickled(tmp_path / "model")
    (folder / "optimizer.bin").touch()
    program = (
        "from depthcut.model.sources import locate; from depthcut.settings import LoadSettings; "
        f"print(locate('team/tiny', LoadSettings(allow_pickle={allowed})))"
    )
    with hub({"models/team/tiny": folder}) as server:
        environment = {
            **os.environ,
            "DEPTHCUT_CACHE": str(tmp_path / "cache"),
            "HF_ENDPOINT": address(server),
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment, capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
    found = Path(done.stdout.strip())
    assert any("pytorch_model.bin" in line for line in server.seen if "resolve" in line) == allowed
    assert not any("optimizer.bin" in line for line in server.seen if "resolve" in line)
    if allowed:
        assert torch.equal(logits(load_exactly(found)), logits(build_tiny("llama", tied=False)))
    else:
        with pytest.raises(CheckpointError, match="needs --allow-pickle"):
            open_checkpoint(found)
