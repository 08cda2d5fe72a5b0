import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from depthcut.errors import MissingExtraError, OutputError, SourceError
from depthcut.model import gguf as module
from depthcut.model.gguf import checkpoint_of_gguf
from tests.model.tiny_gguf import write_gguf
from tests.tiny import CHAT_TEMPLATE, build_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    tokenizer = tiny_tokenizer(folder)
    return write_gguf(build_tiny("llama", tied=True), tokenizer, folder / "tiny.gguf")


@pytest.fixture(scope="module")
def checkpoint(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of_gguf(file, tmp_path_factory.mktemp("cache"), licence="Do as you like.")


def test_the_weights_are_the_model_s_in_bfloat16_with_the_head_tied(checkpoint: Path) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = build_tiny("llama", tied=True).to(torch.bfloat16).state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, expected[name]), name


def test_nothing_of_gguf_is_left_in_the_config(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert not {"quantization_config", "_name_or_path", "_model_name_or_path"} & config.keys()
    assert (checkpoint / "generation_config.json").is_file()


def test_tokenizer_and_chat_template_come_along(checkpoint: Path, file: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    original = AutoTokenizer.from_pretrained(file.parent)
    text = "Grüße, 123 \n  4"
    assert tokenizer(text)["input_ids"] == original(text)["input_ids"]
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer.eos_token_id == original.eos_token_id
    assert tokenizer.model_max_length == 512


def test_card_and_licence_say_where_it_comes_from(checkpoint: Path) -> None:
    card = (checkpoint / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "tiny.gguf" in card
    assert (checkpoint / "LICENSE").read_text() == "Do as you like."


def test_it_is_made_once_and_known_by_content_not_by_name(
    file: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(module, "_convert", never)
    assert checkpoint_of_gguf(file, checkpoint.parent) == checkpoint
    moved = shutil.copy(file, tmp_path / "tiny.gguf")
    assert checkpoint_of_gguf(moved, checkpoint.parent) == checkpoint
    with moved.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(AssertionError, match="made again"):
        checkpoint_of_gguf(moved, checkpoint.parent)


def test_another_process_may_be_first(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(_: Path, working: Path, __: str | None) -> None:
        name = working.name.removeprefix(".").partition(".partial")[0]
        (tmp_path / name).mkdir()
        (tmp_path / name / "whole").touch()

    monkeypatch.setattr(module, "_convert", convert)
    assert (checkpoint_of_gguf(file, tmp_path) / "whole").exists()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(SourceError, match=r"broken\.gguf holds no model") as caught:
        checkpoint_of_gguf(broken, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_says_how_to_move_it(file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match="DEPTHCUT_CACHE"):
        checkpoint_of_gguf(file, tmp_path / "taken" / "cache")


def test_the_missing_package_is_named(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'depthcut\[gguf\]'"):
        checkpoint_of_gguf(file, tmp_path)


def test_smollm_s_digit_rule_is_given_back(file: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(file.parent)
    path = write_gguf(build_tiny("llama", tied=True), tokenizer, tmp_path / "s.gguf", pre="smollm")
    found = AutoTokenizer.from_pretrained(checkpoint_of_gguf(path, tmp_path / "cache"))
    pieces = found.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n  12 b")
    # Without the rule, the last space before a digit is split off.
    assert [piece for piece, _ in pieces] == ["a", "ĊĠĠ", "1", "2", "Ġb"]
