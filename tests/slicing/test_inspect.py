"""What depthcut says that it sees is what is there."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from depthcut import api, cli
from depthcut.checkpoint.folder import SINGLE_FILE, open_checkpoint
from depthcut.gguf.file import read_gguf
from depthcut.records import Inspection, LayerGroup, Refusal
from tests import every_type
from tests.tiny import build_tiny, save_tiny
from tests.tiny_gguf import write_gguf


def inspected(tmp_path: Path, model_type: str, **changes: object) -> Inspection:
    every_type.build(model_type, **changes).save_pretrained(tmp_path / "model")
    return api.inspect(tmp_path / "model")


def values_of(found: Inspection, key: str) -> list[str]:
    """One for each layer."""
    (field,) = (each for each in found.fields if key in each.keys)
    return [value for start, stop, value in field.runs for _ in range(start, stop)]


def test_layers_of_one_kind_are_one_group(tiny_llama: Path) -> None:
    found = api.inspect(tiny_llama)
    checkpoint = open_checkpoint(tiny_llama)
    inside = [entry for name, entry in checkpoint.tensors.items() if ".layers." in name]
    assert found.layers == (
        LayerGroup(
            start=0,
            stop=6,
            tensors=len(inside) // 6,
            parameters=sum(each.elements for each in inside) // 6,
            size_bytes=sum(each.size_bytes for each in inside) // 6,
            modules=found.layers[0].modules,
        ),
    )
    assert set(found.layers[0].modules) >= {"self_attn", "mlp"}
    assert found.stacks == ("model.layers",)
    assert (found.form, found.files, found.head) == ("safetensors", 1, "own")
    assert found.other_bytes + 6 * found.layers[0].size_bytes == checkpoint.weight_bytes
    assert found.dtypes == (("F32", checkpoint.weight_bytes),)
    assert not found.refusals


def test_dense_and_sparse_layers_are_told_apart(tmp_path: Path) -> None:
    found = inspected(tmp_path, "deepseek_v3")
    assert [(each.start, each.stop) for each in found.layers] == [(0, 2), (2, 6)]
    assert "mlp.experts" not in found.layers[0].modules
    assert "mlp.experts" in found.layers[1].modules
    assert values_of(found, "first_k_dense_replace") == ["true"] * 2 + ["false"] * 4


def test_fields_have_the_value_of_each_layer(tmp_path: Path) -> None:
    found = inspected(tmp_path, "qwen3")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert values_of(found, "layer_types") == config["layer_types"]


def test_a_layer_that_others_lean_on_is_told_with_the_reason(tmp_path: Path) -> None:
    found = inspected(tmp_path, "gemma3n_text")
    (refusal,) = found.refusals
    assert refusal.layers == ((1, 3),)
    assert refusal.reason.startswith("layer 3 uses what layer 1 computes")
    assert "nearest removal" not in refusal.reason
    assert values_of(found, "num_kv_shared_layers")[3:] == ["layer 1", "layer 2", "layer 2"]
    assert len(found.sliced) == 2
    assert found.head == "tied"


def test_refusals_of_one_kind_are_one(tmp_path: Path) -> None:
    found = inspected(tmp_path, "diffllama")
    assert [each.layers for each in found.refusals] == [((0, 5),)]


def test_an_unknown_type_says_what_was_assumed(tiny_llama: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "model_type": "news", "auto_map": {"AutoConfig": "news.Config"}})
    )
    (model / "news.py").write_text("")
    found = api.inspect(model)
    assert "'news' is not in depthcut's table" in found.assumed[0]
    assert found.code == ("news.py",)


@pytest.mark.parametrize(("tied", "head"), [(True, "tied"), (False, "own")], ids=["tied", "untied"])
def test_a_tied_head_is_seen(tmp_path: Path, tied: bool, head: str) -> None:
    assert api.inspect(save_tiny(build_tiny("llama", tied=tied), tmp_path / "model")).head == head


def test_a_bare_decoder_has_no_head(tmp_path: Path) -> None:
    model = save_tiny(build_tiny("llama", tied=False), tmp_path / "model")
    weights = load_file(model / SINGLE_FILE)
    del weights["lm_head.weight"]
    save_file(weights, model / SINGLE_FILE, {"format": "pt"})
    assert api.inspect(model).head == "none"


def test_quantisation_and_prediction_layers_are_seen(tiny_llama: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    extra = {"num_nextn_predict_layers": 1}
    (model / "config.json").write_text(json.dumps(config | quantised | extra))
    weights = load_file(model / SINGLE_FILE)
    weights["model.layers.6.eh_proj.weight"] = torch.ones(4, dtype=torch.bfloat16)
    save_file(weights, model / SINGLE_FILE, {"format": "pt"})
    found = api.inspect(model)
    assert (found.quantization, found.prediction_layers) == ("gptq, 4 bits", 1)
    assert found.dtypes[1] == ("BF16", 8)
    assert (found.layers[-1].stop, found.other_tensors) == (6, 4)


def test_a_gguf_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "model.gguf",
        metadata={"attention.head_count_kv": [2, 2, 1, 2, 2, 2], "other.x": 1},
    )
    found = api.inspect(file)
    assert (found.form, found.model.layers, found.stacks) == ("GGUF", 6, ("blk",))
    inside = sum(each.tensors * (each.stop - each.start) for each in found.layers)
    assert inside + found.other_tensors == len(read_gguf(file).tensors)
    assert values_of(found, "attention.head_count_kv") == ["2", "2", "1", "2", "2", "2"]


def test_the_command_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    expected = inspected(tmp_path, "gemma3n_text")
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path / "model"), "--json"])
    assert msgspec.json.decode(capsys.readouterr().out, type=Inspection) == expected
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path / "model")])
    shown = capsys.readouterr().out
    assert "4–5" in shown
    assert "3: layer 1, 4–5: layer 2" in shown
    assert "cannot go alone: layers 1–2: layer 3 uses" in shown


def test_square_brackets_of_a_file_are_shown_as_they_are(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from depthcut.reporting.terminal import inspection_tables, show

    reason = "no [red]colour[/] here"
    found = api.inspect(tiny_llama)
    show(inspection_tables(msgspec.structs.replace(found, refusals=(Refusal(layers=((0, 1),),
        reason=reason),))))  # fmt: skip
    assert reason in capsys.readouterr().out
