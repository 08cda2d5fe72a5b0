import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from depthcut import api, cli
from depthcut.records import Plan, read_record, write_record
from depthcut.settings import Recipe
from tests.records_for_tests import make_survey
from tests.reporting.sweeps_for_tests import make_search

Outcome = tuple[int, str, str]


@pytest.fixture
def depthcut(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        code = caught.value.code
        return (code if isinstance(code, int) else 0), out, err

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["inspect", "--help"],
        ["plan", "--help"],
        ["slice", "--help"],
        ["verify", "--help"],
        ["report", "--help"],
        ["recipe"],
    ],
    ids=" ".join,
)
def test_light_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from depthcut.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'pandas'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_importing_depthcut_is_light() -> None:
    code = "import sys, depthcut; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("command", [*cli.COMMANDS])
def test_every_command_has_help(command: str, depthcut: Callable[..., Outcome]) -> None:
    code, out, _ = depthcut(command, "--help")
    assert code == 0
    assert f"usage: depthcut {command}" in out


def test_an_error_is_one_line_and_exit_2(depthcut: Callable[..., Outcome], tmp_path: Path) -> None:
    code, out, err = depthcut("plan", tmp_path / "none.json", "--drop", 7, "--out", tmp_path / "p")
    assert (code, out) == (2, "")
    assert err.startswith("depthcut: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "p").exists()


def test_a_mistyped_option_suggests_the_right_one(depthcut: Callable[..., Outcome]) -> None:
    code, _, err = depthcut("survey", "smollm2", "--tokns", 5, "--out", "x.json")
    assert code == 2
    assert "--tokens" in err


def test_ctrl_c_exits_130_without_traceback(
    depthcut: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(api, "survey", interrupted)
    code, _, err = depthcut("survey", "smollm2", "--out", tmp_path / "survey.json")
    assert code == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_plan_prints_what_goes_and_writes_the_record(
    depthcut: Callable[..., Outcome], tmp_path: Path
) -> None:
    survey = tmp_path / "survey.json"
    write_record(make_survey(6), survey)
    code, out, _ = depthcut("plan", survey, "--drop", "50%", "--out", tmp_path / "plan.json")
    plan = read_record(tmp_path / "plan.json", Plan)
    assert code == 0
    assert plan.words in out.replace("\n", " ")
    code, out, _ = depthcut(
        "plan", survey, "--drop", "50%", "--out", tmp_path / "again.json", "--json"
    )
    slices = [(each["start"], each["stop"]) for each in json.loads(out)["slices"]]
    assert slices == [(each.start, each.stop) for each in plan.slices]


def test_plan_writes_a_mergekit_recipe(depthcut: Callable[..., Outcome], tmp_path: Path) -> None:
    survey = tmp_path / "survey.json"
    write_record(make_survey(6), survey)
    depthcut(
        "plan", survey, "--remove", "2-3",
        "--out", tmp_path / "plan.json", "--mergekit", tmp_path / "merge.yaml",
    )  # fmt: skip
    recipe = (tmp_path / "merge.yaml").read_text()
    assert "passthrough" in recipe
    assert "[0, 2]" in recipe
    assert "[4, 6]" in recipe


def test_nothing_is_overwritten(depthcut: Callable[..., Outcome], tmp_path: Path) -> None:
    survey = tmp_path / "survey.json"
    write_record(make_survey(6), survey)
    before = survey.read_bytes()
    code, _, err = depthcut("plan", survey, "--drop", 1, "--out", survey)
    assert (code, survey.read_bytes()) == (2, before)
    assert "exists already" in err


def test_a_recipe_and_its_options_cannot_be_mixed(
    depthcut: Callable[..., Outcome], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: smollm2\n")
    code, _, err = depthcut("run", recipe, "--drop", 3, "--out", tmp_path / "run")
    assert code == 2
    assert "write it into" in err


def test_a_run_takes_load_options_as_other_commands_do(
    depthcut: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr(cli, "_run", lambda recipe, *_, **__: recipes.append(recipe))
    code, _, _ = depthcut("run", "smollm2", "--device", "cpu", "--out", tmp_path / "run")
    assert code == 0
    assert recipes[0].load.device == "cpu"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: smollm2\n")
    code, _, err = depthcut("run", recipe, "--device", "cpu", "--out", tmp_path / "run")
    assert (code, len(recipes)) == (2, 1)
    assert "load options and a recipe" in err


def test_a_run_and_the_demo_repair_and_heal_as_they_are_told(
    depthcut: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes: list[Recipe] = []
    monkeypatch.setattr(cli, "_run", lambda recipe, *_, **__: recipes.append(recipe))
    for options in (
        ("run", "smollm2", "--repair", "refit", "--heal", "lora"),
        ("run", "smollm2", "--heal-steps", 5),
        ("demo",),
        ("demo", "--heal"),
    ):
        code, _, err = depthcut(*options, "--out", tmp_path / "run")
        assert (code, err) == (0, "")
    both, steps, demo, healing = recipes
    assert both.repair is not None
    assert both.heal is not None
    assert both.heal.method == "lora"
    assert steps.repair is None
    assert steps.heal is not None
    assert (steps.heal.method, steps.heal.steps) == ("lora", 5)
    assert demo.repair == healing.repair
    assert [each.heal is None for each in (demo, healing)] == [True, False]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: smollm2\n")
    for option in (("--repair", "refit"), ("--heal", "full")):
        code, _, err = depthcut("run", recipe, *option, "--out", tmp_path / "run")
        assert (code, f"{option[0].removeprefix('--')} and a recipe" in err) == (2, True)


def test_what_comes_next_to_a_search_can_be_typed_as_it_is(
    depthcut: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_search()
    monkeypatch.setattr(api, "search", lambda *_, **__: found)
    out = tmp_path / "search.json"
    most = found.count(found.frontier[-1])
    printed = depthcut("search", "smollm2", "--drop", "1:9", "--out", out)[1].replace("\n", "")
    assert f"--drop {most} --out plan.json" in printed
    nothing = msgspec.structs.replace(found, frontier=(), complete=False)
    monkeypatch.setattr(api, "search", lambda *_, **__: nothing)
    _, printed, _ = depthcut("search", "smollm2", "--drop", "1:9", "--out", out)
    assert "raise --minutes or --evaluations" in printed
    assert "next:" not in printed


def test_a_record_of_another_kind_is_called_by_its_kind(
    depthcut: Callable[..., Outcome], tmp_path: Path
) -> None:
    survey = tmp_path / "survey.json"
    write_record(make_survey(6), survey)
    code, _, err = depthcut("slice", "smollm2", survey, "--out", tmp_path / "out")
    assert code == 2
    assert "is not a plan: it is a survey; give a plan" in err
    survey.write_text('{"kind": "survey"}')
    code, _, err = depthcut("plan", survey, "--drop", 1, "--out", tmp_path / "out")
    assert code == 2
    assert "make it again with this version" in err


def test_the_printed_recipe_can_be_run_as_it_is(depthcut: Callable[..., Outcome]) -> None:
    code, out, _ = depthcut("recipe")
    assert code == 0
    assert out.startswith("# A recipe")


def test_a_csv_without_its_criterion_is_refused_before_anything_is_loaded(
    depthcut: Callable[..., Outcome], tmp_path: Path
) -> None:
    options = ("--out", tmp_path / "survey.json", "--csv", tmp_path / "a.csv")
    code, _, err = depthcut("survey", "no-such-model", *options, "--criteria", "cosine", "cka")
    assert code == 2
    assert err == "depthcut: --csv holds angular distances: add angular or pruneme to --criteria\n"
