"""Every kind of bad input, as a user meets it: one line of advice, exit 2, nothing left behind."""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from depthcut import cli
from depthcut.records import Plan, write_record

Outcome = tuple[int, str]
Command = Callable[..., Outcome]
WORDS = "A sentence about nothing in particular, repeated until it is long enough. " * 60


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Runs a command that must be refused; returns its one line."""

    def call(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as caught:
            cli.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("depthcut: ")]
        assert caught.value.code == 2, err
        assert len(lines) == 1, err
        assert "Traceback" not in err
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was left behind"
        return lines[0]

    return call


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture
def plan(tiny_llama: Path, tmp_path: Path) -> Path:
    import depthcut

    path = tmp_path / "plan.json"
    depthcut.plan(tiny_llama, depthcut.PlanSettings(remove="2-3"), out=path)
    return path


def edit_header(path: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def without_config(model: Path) -> None:
    (model / "config.json").unlink()


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def only_bin(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)


def cut_in_its_header(model: Path) -> None:
    os.truncate(model / "model.safetensors", 20)


def lying_about_its_header(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", 2**40) + weights.read_bytes()[8:])


def lying_about_a_shape(model: Path) -> None:
    def change(header: dict[str, dict[str, object]]) -> None:
        header["model.norm.weight"]["shape"] = [7]

    edit_header(model / "model.safetensors", change)


def index_names(model: Path, shard: str) -> None:
    index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
    (model / "model.safetensors").rename(model / "other.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def missing_shard(model: Path) -> None:
    index_names(model, "model-00001-of-00002.safetensors")


def shard_outside(model: Path) -> None:
    index_names(model, "../text.safetensors")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (without_config, "config.json"),
        (without_weights, "no weights"),
        (only_bin, "save_pretrained"),
        (truncated, "download"),
        (cut_in_its_header, "model.safetensors"),
        (lying_about_its_header, "model.safetensors"),
        (lying_about_a_shape, "model.norm.weight"),
        (missing_shard, "missing"),
        (shard_outside, "no file of its folder"),
    ],
)
@pytest.mark.parametrize("command", ["slice", "survey"])
def test_broken_checkpoints(
    refused: Callable[..., str],
    model: Path,
    plan: Path,
    text: Path,
    tmp_path: Path,
    broken: Callable[[Path], None],
    says: str,
    command: str,
) -> None:
    broken(model)
    out = tmp_path / "out"
    if command == "slice":
        line = refused("slice", model, plan, "--out", out)
    else:
        line = refused("survey", model, "--text", text, "--context", 64, "--out", out)
    assert says in line


def test_a_plan_for_another_model(
    refused: Callable[..., str], tiny_llama_sharded: Path, model: Path, plan: Path, tmp_path: Path
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert "another model" in refused("slice", model, plan, "--out", tmp_path / "out")


@pytest.mark.parametrize("slices", [[(0, 6)], [], [(5, 7)]], ids=["none", "all", "out of range"])
def test_a_plan_file_that_removes_what_cannot_be(
    refused: Callable[..., str],
    model: Path,
    plan: Path,
    tmp_path: Path,
    slices: list[tuple[int, int]],
) -> None:
    from depthcut.records import read_record
    from tests.slices import arranged

    edited = tmp_path / "edited.json"
    write_record(arranged(read_record(plan, Plan), *slices), edited)
    line = refused("slice", model, edited, "--out", tmp_path / "out")
    assert "layer" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--remove", "0-5"], "at least one must stay"),
        (["--remove", "6"], "no layer 6"),
        (["--remove", ""], "none"),
        (["--drop", "2"], "name the layers"),
    ],
)
def test_layers_that_cannot_go(
    refused: Callable[..., str], model: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    assert says in refused("plan", model, *options, "--out", tmp_path / "out")


def survey_line(refused: Callable[..., str], model: Path, tmp_path: Path, *rest: object) -> str:
    return refused("survey", model, *rest, "--out", tmp_path / "out")


def test_an_empty_text(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    line = survey_line(refused, model, tmp_path, "--text", tmp_path / "empty.txt")
    assert "empty" in line


def test_a_text_shorter_than_one_context(
    refused: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("Too short.")
    line = survey_line(refused, model, tmp_path, "--text", tmp_path / "short.txt")
    assert "lower --context" in line


def test_a_missing_column(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": WORDS, "answer": WORDS}) + "\n")
    path = tmp_path / "rows.jsonl"
    line = survey_line(refused, model, tmp_path, "--text", path, "--columns", "questoin")
    assert "question" in line
    assert "answer" in line


def test_text_that_is_not_utf8(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("déjà vu ".encode("latin-1") * 200)
    line = survey_line(refused, model, tmp_path, "--text", tmp_path / "latin.txt")
    assert "UTF-8" in line


def test_a_text_that_is_not_there(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    line = survey_line(refused, model, tmp_path, "--text", tmp_path / "nowhere.txt")
    assert "nowhere.txt" in line


def test_a_hub_model_without_network(refused: Callable[..., str], tmp_path: Path) -> None:
    line = refused("survey", "nobody/nothing", "--out", tmp_path / "out")
    assert "network" in line or "hub" in line


def test_a_hub_text_without_network(
    refused: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    line = survey_line(refused, model, tmp_path, "--text", "nobody/nothing")
    assert "network" in line or "hub" in line


def test_no_space_left_on_the_disk(
    refused: Callable[..., str],
    model: Path,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("copy_file_range", "sendfile", "write", "pwrite"):
        if hasattr(os, name):
            monkeypatch.setattr(os, name, full)
    line = refused("slice", model, plan, "--out", tmp_path / "out")
    assert "no space left" in line


def test_an_output_that_exists(
    refused: Callable[..., str], model: Path, plan: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    assert "exists already" in refused("slice", model, plan, "--out", tmp_path / "out")


def test_an_output_that_cannot_be_is_told_before_anything_is_measured(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "folder" / "out.json"
    for command in ("survey", "search", "evaluate", "bench"):
        # A model that is not there would be told first, were it looked at.
        line = refused(command, tmp_path / "no model", "--out", out)
        assert f"cannot write {out}: Not a directory; choose another --out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_model_named_twice(refused: Callable[..., str], model: Path, tmp_path: Path) -> None:
    line = refused("evaluate", model, model, "--out", tmp_path / "out.json")
    assert "a model is named twice: name each once" in line


def test_a_report_of_what_is_no_folder(
    refused: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    for place in (tmp_path / "none", model / "config.json"):
        assert f"{place} is no folder: give the one that holds the records" in refused(
            "report", place
        )


def test_a_device_that_is_not_there(
    refused: Callable[..., str], model: Path, text: Path, tmp_path: Path
) -> None:
    line = survey_line(refused, model, tmp_path, "--text", text, "--device", "cuda:7")
    assert "cuda" in line
