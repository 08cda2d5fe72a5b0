import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import depthcut
from depthcut import cli
from depthcut.records import RepairRecord, read_record, write_record
from tests.slices import arranged, plan_without
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

Outcome = tuple[int, str, str]
SENTENCES = " ".join(f"The number {n} comes after {n - 1}." for n in range(150))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process: (exit code, stdout, its error line)."""

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            cli.main([*map(str, arguments), "--device", "cpu", "--context", "64"])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("depthcut: ")]
        return int(caught.value.code or 0), out, "".join(lines)

    return call


@pytest.fixture
def plan(tiny_llama: Path, tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    depthcut.plan(tiny_llama, depthcut.PlanSettings(remove="2-3"), out=path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(SENTENCES)
    return path


def test_repair_writes_a_folder_and_says_what_it_won(
    command: Callable[..., Outcome], tiny_llama: Path, plan: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, said, _ = command("repair", tiny_llama, plan, "--text", text, "--out", out)
    record = read_record(out / "depthcut.json", RepairRecord)
    (block,) = record.blocks
    assert code == 0
    assert f"the error of the states is {block.error_after:.1%}, {block.error_before:.1%}" in said
    assert f"next: depthcut heal {out}" in said
    assert record.text.source == str(text)
    assert record.result == depthcut.api.facts(out)
    assert AutoModelForCausalLM.from_pretrained(out).config.num_hidden_layers == 4
    arguments = ("--text", text, "--method", "linear", "--json", "--out", tmp_path / "two")
    code, said, _ = command("repair", tiny_llama, plan, *arguments)
    assert json.loads(said)["settings"]["method"] == "linear"


def test_python_takes_texts_in_memory(tiny_llama: Path, plan: Path, tmp_path: Path) -> None:
    record = depthcut.repair(
        tiny_llama,
        plan,
        tmp_path / "out",
        depthcut.RepairSettings(context=64),
        texts=[SENTENCES],
        load=depthcut.LoadSettings(device="cpu"),
    )
    assert record == read_record(tmp_path / "out" / "depthcut.json", RepairRecord)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", 200), "4 sequences of text: at least 8 are needed"),
        (("--method", "lineal"), "scale, norm, merge (did you mean linear?)"),
        (("--text", "no.txt"), "no.txt"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Callable[..., Outcome],
    tiny_llama: Path,
    plan: Path,
    text: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    given = arguments if "--text" in arguments else ("--text", text, *arguments)
    code, out, line = command("repair", tiny_llama, plan, *given, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_plans_that_cannot_be_repaired_are_refused_before_the_model_is_loaded(
    command: Callable[..., Outcome],
    tiny_llama: Path,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("depthcut.model.loading.load", lambda *_: pytest.fail("it was loaded"))
    other = save_tiny(build_tiny("llama", layers=5), tmp_path / "other")
    tiny_tokenizer(other)
    repeated, first = tmp_path / "repeated.json", tmp_path / "first.json"
    whole = plan_without(tiny_llama, (2,))
    write_record(arranged(whole, (0, 4), (3, 6)), repeated)
    write_record(plan_without(tiny_llama, (0,)), first)
    for model, path, message in (
        (other, plan, "make a plan for it"),
        (tiny_llama, repeated, "repeats or moves layers"),
        (tiny_llama, first, "keep layer 0"),
    ):
        code, _, line = command("repair", model, path, "--out", tmp_path / "out")
        assert code == 2
        assert message in line
    assert not (tmp_path / "out").exists()
