import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from depthcut import api, cli
from depthcut.options import TEXT_OPTIONS, with_texts_joined
from depthcut.settings import EvaluateSettings, Recipe, SurveySettings, Texts


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Texts]:
    """Runs a command up to its stage: the texts that it was asked for."""
    out = tmp_path / "out"

    def call(*arguments: str) -> Texts:
        found: list[Texts] = []

        def stage(_: object, settings: SurveySettings | EvaluateSettings, **__: object) -> None:
            found.append(settings.text)
            raise KeyboardInterrupt

        for name in ("survey", "evaluate"):
            monkeypatch.setattr(api, name, stage)
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--out", str(out)])
        assert caught.value.code == 130
        return found[0]

    return call


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], "builtin"),
        (["--text", "a.txt"], "a.txt"),
        (["--text", "-"], "-"),
        (["--text=a.txt"], "a.txt"),
        (["--text", "a.txt:2", "b.txt"], ("a.txt:2", "b.txt")),
        (["--text", "a.txt:2", "--text", "b.txt"], ("a.txt:2", "b.txt")),
        (["--text=a.txt", "--tokens", "9", "--text", "b.txt"], ("a.txt", "b.txt")),
        (["--text", "a.txt", "--text", "b.txt", "--text=c.txt"], ("a.txt", "b.txt", "c.txt")),
    ],
)
def test_texts_are_repeated_or_listed(
    asked: Callable[..., Texts], arguments: list[str], texts: Texts
) -> None:
    assert asked("survey", "m", *arguments) == texts
    if not isinstance(texts, tuple) or arguments.count("--text") != 1:
        assert asked("survey", *arguments, "m") == texts
    assert asked("evaluate", "m", "n", *arguments) == texts


def test_a_run_takes_several_texts_for_both_sides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr(cli, "_run", lambda recipe, *_, **__: recipes.append(recipe))
    arguments = ["run", "m", "--text", "a", "--eval-text", "c:3", "--text", "b", "--eval_text=d"]
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--out", str(tmp_path / "run")])
    assert recipes[0].survey.text == ("a", "b")
    assert recipes[0].evaluate.text == ("c:3", "d")


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_every_option_that_takes_texts_can_be_repeated(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # tyro would silently keep the last.
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    options = re.findall(r"(--[\w-]+) TEXT\[:WEIGHT\]", capsys.readouterr().out)
    assert set(options) <= set(TEXT_OPTIONS)


@pytest.mark.parametrize("arguments", [["--text"], ["--text", "--tokens", "9"]])
def test_an_option_without_a_text_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["survey", "m", "--out", "x.json", *arguments])
    assert caught.value.code == 2
    assert "--text" in capsys.readouterr().err


def test_what_follows_one_text_is_no_text_where_the_model_comes_last(
    asked: Callable[..., Texts],
) -> None:
    assert asked("survey", "--text", "a", "m", "--tokens", "9") == "a"
    assert asked("evaluate", "--text", "a", "m", "n", "--text", "b") == ("a", "b")


def test_other_options_stay_as_they_are() -> None:
    arguments = ["survey", "m", "--columns", "x", "y", "--text=", "--json"]
    joined = ["survey", "m", "--columns", "x", "y", "--json", "--text", ""]
    assert with_texts_joined(arguments) == joined
    assert with_texts_joined([]) == []
    assert with_texts_joined(["--help"]) == ["--help"]


def test_without_arguments_those_of_the_process_count(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["depthcut", "recipe"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.startswith("# A recipe")
