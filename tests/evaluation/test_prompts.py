from pathlib import Path

import pytest

from depthcut.errors import SourceError, TextError
from depthcut.evaluation.inputs import evaluation_inputs
from depthcut.evaluation.prompts import DEFAULT_PROMPTS, read_prompts
from depthcut.settings import EvaluateSettings, LoadSettings


def test_ten_different_prompts_are_the_default() -> None:
    assert len(set(DEFAULT_PROMPTS)) == 10
    assert read_prompts(None) == DEFAULT_PROMPTS


def test_a_file_gives_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffFirst one\n\n  Second:\\nx = \n", encoding="utf-8")
    assert read_prompts(str(file)) == ("First one", "Second:\nx =")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no file .*one prompt a line"):
        read_prompts(str(tmp_path / "none.txt"))


def test_a_folder_is_no_file_of_prompts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot read"):
        read_prompts(str(tmp_path))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "prompts.txt").write_text(" \n\n")
    with pytest.raises(TextError, match="holds no prompt"):
        read_prompts(str(file))


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (file := tmp_path / "prompts.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(TextError, match="not UTF-8"):
        read_prompts(str(file))


def test_inputs_change_with_everything_an_evaluation_depends_on(tmp_path: Path) -> None:
    (file := tmp_path / "prompts.txt").write_text("One\n")
    settings, load = EvaluateSettings(prompts=str(file)), LoadSettings()
    found = [
        evaluation_inputs(["a", "b"], "t", settings, load),
        evaluation_inputs(["b", "a"], "t", settings, load),
        evaluation_inputs(["a", "b"], "u", settings, load),
        evaluation_inputs(["a", "b"], "t", EvaluateSettings(), load),
        evaluation_inputs(["a", "b"], "t", settings, LoadSettings(dtype="float32")),
    ]
    file.write_text("Two\n")
    found.append(evaluation_inputs(["a", "b"], "t", settings, load))
    assert len(set(found)) == len(found)
