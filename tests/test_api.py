"""Around a stage: which road a source takes, and which options it refuses."""

import json
from pathlib import Path

import gguf
import msgspec
import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from depthcut import api, cli, slicing
from depthcut.errors import PlanError, RecordError, SettingsError, SourceError
from depthcut.gguf.file import read_gguf
from depthcut.gguf.model import gguf_facts
from depthcut.records import Plan, read_record
from depthcut.settings import (
    EvaluateSettings,
    HealSettings,
    OwnTextSettings,
    PlanSettings,
    SurveySettings,
    size_bytes,
)
from depthcut.version import __version__
from tests.model.tiny_gguf import write_gguf
from tests.slices import load_exactly, logits, plan_without
from tests.slicing.test_adapter import load_adapter, make_adapter
from tests.tiny import build_tiny

REMOVED = PlanSettings(remove="2-3")


@pytest.fixture
def llama_gguf(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny Llama as a GGUF file, and a cache of its own."""
    monkeypatch.setenv("DEPTHCUT_CACHE", str(tmp_path / "cache"))
    model = build_tiny("llama", tied=True)
    return write_gguf(model, AutoTokenizer.from_pretrained(tiny_llama), tmp_path / "model.gguf")


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(each) for each in arguments])
    return int(caught.value.code or 0)


def test_a_gguf_file_is_cut_into_a_gguf_file_by_a_plan_of_its_own(
    llama_gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", llama_gguf, "--remove", "2-3", "--out", tmp_path / "plan.json") == 0
    capsys.readouterr()
    out = tmp_path / "cut.gguf"
    assert run("slice", llama_gguf, tmp_path / "plan.json", "--out", out) == 0
    assert "6 layers become 4" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists(), "nothing was dequantised"
    plan = read_record(tmp_path / "plan.json", Plan)
    said = {key: read_gguf(out).metadata[f"depthcut.{key}"].value for key in ("version", "change")}
    assert said == {"version": __version__, "change": f"6 layers {plan.change}"}
    held = read_gguf(out).metadata["depthcut.plan"].value
    assert msgspec.json.decode(held, type=Plan) == plan
    before, after = ({t.name: t for t in gguf.GGUFReader(f).tensors} for f in (llama_gguf, out))
    for new, old in enumerate(plan.kept_layers):
        name = "blk.{}.ffn_up.weight"
        assert (after[name.format(new)].data == before[name.format(old)].data).all()


def test_a_gguf_file_is_cut_by_the_plan_of_another_quantisation(
    llama_gguf: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    record = api.slice(llama_gguf, plan_without(tiny_llama, (0, 5)), tmp_path / "cut.gguf")
    assert record.result == gguf_facts(tmp_path / "cut.gguf", source=str(tmp_path / "cut.gguf"))
    assert record.result.layers == 4
    deeper = plan_without(tiny_llama, (0,))
    sizes = (1, *deeper.model.layer_parameters)
    model = msgspec.structs.replace(deeper.model, layers=7, layer_parameters=sizes)
    other = msgspec.structs.replace(deeper, model=model)
    with pytest.raises(PlanError, match=r"7 layers of width 48.*has 6 of width 48"):
        api.slice(llama_gguf, other, tmp_path / "no.gguf")


def test_a_plan_of_a_gguf_file_also_cuts_its_dequantised_form(
    llama_gguf: Path, tmp_path: Path
) -> None:
    plan = api.plan(llama_gguf, REMOVED)
    assert plan.model.digest == gguf_facts(llama_gguf, source="").digest
    api.slice(llama_gguf, plan, tmp_path / "cut")
    assert api.verify(tmp_path / "cut").loads
    assert load_exactly(tmp_path / "cut").config.num_hidden_layers == 4


def test_a_folder_is_not_cut_into_a_gguf_file(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a GGUF file is cut from a GGUF file"):
        api.slice(tiny_llama, plan_without(tiny_llama, (1,)), tmp_path / "cut.gguf")


def test_an_adapter_is_cut_with_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = make_adapter(tmp_path, LoraConfig(target_modules=["q_proj", "down_proj"]))
    plan, cut = tmp_path / "plan.json", tmp_path / "cut"
    api.plan(base, REMOVED, out=plan)
    assert run("slice", base, plan, "--out", cut) == 0
    assert run("slice", adapter, plan, "--out", tmp_path / "out", "--base", cut) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("next: depthcut evaluate") for line in shown) == 1
    model = load_adapter(cut, tmp_path / "out")
    assert not torch.equal(logits(model), logits(load_exactly(cut)))
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(cut)


def test_only_a_sliced_checkpoint_is_proved(
    llama_gguf: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    _, adapter = make_adapter(tmp_path, LoraConfig(target_modules=["q_proj"]))
    for other in (llama_gguf, adapter):
        with pytest.raises(SettingsError, match="no sliced checkpoint"):
            api.verify(other)
    with pytest.raises(RecordError, match=r"no file .*depthcut\.json"):
        api.verify(tiny_llama)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"shard_bytes": 5}, "--shard-bytes means nothing for a PEFT adapter"),
        ({"link": True}, "--link means nothing for a PEFT adapter"),
        ({"other_model": True}, "--other-model means nothing for a PEFT adapter"),
    ],
)
def test_options_that_mean_nothing_for_an_adapter_are_refused(
    tmp_path: Path, options: dict, says: str
) -> None:
    base, adapter = make_adapter(tmp_path, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(SettingsError, match=says):
        api.slice(adapter, plan_without(base, (1,)), tmp_path / "out", **options)


def test_options_that_mean_nothing_for_a_model_are_refused(
    tiny_llama: Path, llama_gguf: Path, tmp_path: Path
) -> None:
    plan = plan_without(tiny_llama, (1,))
    with pytest.raises(SettingsError, match="--base means nothing for a model"):
        api.slice(tiny_llama, plan, tmp_path / "out", base="x")
    with pytest.raises(SettingsError, match="--link means nothing for a GGUF file"):
        api.slice(llama_gguf, plan, tmp_path / "out.gguf", link=True)


def test_shards_and_links_are_asked_for_on_the_command_line(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.json"
    api.plan(tiny_llama, REMOVED, out=plan)
    assert run("slice", tiny_llama, plan, "--out", tmp_path / "a", "--shard-bytes", "60kB") == 0
    assert len([*(tmp_path / "a").glob("*.safetensors")]) > 3
    asked = {}
    monkeypatch.setattr(slicing, "slice_checkpoint", lambda *_, **options: asked.update(options))
    run_quietly = ("slice", tiny_llama, plan, "--out", tmp_path / "b", "--json")
    assert run(*run_quietly, "--link", "--other-model") == 0
    assert (asked["link"], asked["other_model"], asked["shard_bytes"]) == (True, True, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5_000_000_000), ("1.5 gb", 1_500_000_000), ("2GiB", 2 << 30), ("300k", 300_000),
     ("7", 7)],
)  # fmt: skip
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert size_bytes(text, "shard-bytes") == size


@pytest.mark.parametrize("text", ["", "0", "0.2", "GB", "5XB", "-1GB", "5iB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="write a size such as 5GB"):
        size_bytes(text, "shard-bytes")


def test_a_misspelt_text_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("depthcut.model.loading.load", load)
    wrong = str(tmp_path / "none.txt")
    for stage in (
        lambda: api.survey("m", SurveySettings(text=wrong)),
        lambda: api.heal("m", tmp_path / "out", HealSettings(text=(wrong, "builtin"))),
        lambda: api.evaluate(["m"], EvaluateSettings(text=wrong)),
        lambda: api.generate_text("m", tmp_path / "a.jsonl", OwnTextSettings(prompts=wrong)),
    ):
        with pytest.raises(SourceError, match=r"no text .*none\.txt"):
            stage()
