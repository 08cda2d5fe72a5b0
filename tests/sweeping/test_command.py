"""depthcut sweep on the command line."""

import json
from pathlib import Path

import pytest

from depthcut.cli import main
from depthcut.records import Sweep, read_record


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    code = exit_.value.code
    assert isinstance(code, int)
    return code, *capsys.readouterr()


@pytest.fixture
def command(tiny_llama: Path, tmp_path: Path) -> list[str]:
    for number, name in enumerate(("text", "first", "second")):
        (tmp_path / f"{name}.txt").write_text(f"a river runs {number} and a bridge sleeps; " * 60)
    return [
        "sweep", str(tiny_llama), "--criteria", "angular,greedy,last", "--drop", "1:2",
        "--text", str(tmp_path / "text.txt"), "--context", "64", "--tokens", "512",
        "--search-context", "32", "--search-tokens", "256",
        "--judge", str(tmp_path / "first.txt"), "--judge", str(tmp_path / "second.txt"),
        "--judge-context", "64", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_the_command_writes_the_record_and_shows_the_tables(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(command, capsys)
    assert code == 0
    for words in ("behind the", "of 4", "first.txt, by", "second.txt, by", "next: depthcut report"):
        assert words in out
    assert "searches: greedy" in err
    sweep = read_record(tmp_path / "out" / "sweep.json", Sweep)
    assert len(sweep.judged) == 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"sweep.csv", "sweep.md", "survey.json", "searches", "surveys", "judged"} <= names
    assert "plots" not in names  # drawn by the report
    code, out, err = said([*command, "--json"], capsys)
    assert json.loads(out)["kind"] == "sweep"
    assert "sweep.json is there already" in err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("angular,greedy,last", "angular,gredy"), "no way of choosing 'gredy' (did you mean"),
        (("1:2", "1:6"), "drop 1:6: removes 6 of 6 layers; at least one must stay"),
        (("first.txt", "frist.txt"), "no text"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    command: list[str],
    changed: tuple[str, str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wrong = [argument.replace(*changed) for argument in command]
    code, out, err = said(wrong, capsys)
    assert (code, out) == (2, "")
    assert err.startswith("depthcut: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out" / "surveys").exists()


def test_a_sweep_needs_no_library_for_figures_or_the_hub(command: list[str]) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from depthcut.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'vl_convert', 'datasets', 'gguf', 'pyarrow', 'pandas'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-300:]
