"""depthcut bench, as a user meets it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from depthcut import api, cli
from depthcut.records import Bench, read_record
from depthcut.settings import BenchSettings

Outcome = tuple[int, str, str]
SHORT = ("--rounds", 2, "--prompt-tokens", 8, "--new-tokens", 3)


@pytest.fixture
def depthcut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Runs a command in this process: (exit code, stdout, stderr). Memory takes too long."""
    monkeypatch.setattr("depthcut.benching.bench.measure_footprint", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        code = caught.value.code
        return (code if isinstance(code, int) else 0), out, err

    return call


def test_bench_shows_a_table_and_writes_the_record(
    depthcut: Callable[..., Outcome], tiny_llama: Path, tiny_llama_sharded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    models = (tiny_llama, tiny_llama_sharded)
    code, shown, _ = depthcut("bench", *models, *SHORT, "--batch-sizes", "1,2", "--out", out)
    assert code == 0
    record = read_record(out, Bench)
    assert [each.name for each in record.models] == [str(model) for model in models]
    assert record.settings == BenchSettings(
        rounds=2, prompt_tokens=8, new_tokens=3, batch_sizes=(1, 2)
    )
    assert {each.ideal_decode for each in record.ratios} == {1.0}  # the same weights
    assert "ideal" in shown
    assert "8 tokens read, 3 written" in shown
    code, shown, _ = depthcut("bench", tiny_llama, *SHORT, "--json", "--out", tmp_path / "b.json")
    assert code == 0
    assert json.loads(shown)["kind"] == "bench"


@pytest.mark.parametrize(
    ("given", "sizes"),
    [(("1,8,32",), (1, 8, 32)), (("1", "8"), (1, 8)), (("1,", "4"), (1, 4)), (("2",), (2,))],
)
def test_batch_sizes_stand_between_commas_or_spaces(
    given: tuple[str, ...],
    sizes: tuple[int, ...],
    depthcut: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[BenchSettings] = []

    def stage(_: object, settings: BenchSettings, **__: object) -> None:
        found.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "bench", stage)
    out = tmp_path / "out"
    assert depthcut("bench", "m", "--batch-sizes", *given, "--out", out)[0] == 130
    assert found[0].batch_sizes == sizes


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rounds", 0], "--rounds 0: expected a number of at least 1"),
        (["--new-tokens", 1], "--new-tokens 1: expected a number of at least 2"),
        (["--batch-sizes", "1,0"], "--batch-sizes 1,0: expected numbers of at least 1"),
        (["--batch-sizes", "1,1"], "one comes twice"),
        (["--engine", "llama.cpp"], "runs GGUF files"),
        (["--engine", "vllm"], "vllm needs"),
        (["--device", "cuda:99"], "cuda:99"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    arguments: list[object],
    says: str,
    depthcut: Callable[..., Outcome],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    code, out, err = depthcut("bench", tiny_llama, *arguments, "--out", tmp_path / "bench.json")
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_words_for_numbers_and_unknown_engines_are_refused(
    depthcut: Callable[..., Outcome], tmp_path: Path
) -> None:
    out = ("--out", tmp_path / "bench.json")
    code, _, err = depthcut("bench", "smollm2", "--batch-sizes", "1,many", *out)
    assert code == 2
    assert "1,many: expected whole numbers such as 1,8,32" in err
    code, _, err = depthcut("bench", "smollm2", "--engine", "onnx", *out)
    assert code == 2
    assert "llama.cpp" in err


def test_a_model_named_twice_is_refused(
    depthcut: Callable[..., Outcome], tiny_llama: Path, tmp_path: Path
) -> None:
    code, _, err = depthcut("bench", tiny_llama, tiny_llama, "--out", tmp_path / "bench.json")
    assert (code, err) == (2, "depthcut: a model is named twice: name each once\n")


def test_results_that_are_there_are_not_replaced(
    depthcut: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "bench.json").write_text("mine")
    code, _, err = depthcut("bench", "no-such-model", "--out", tmp_path / "bench.json")
    assert code == 2
    assert "exists already" in err
    assert (tmp_path / "bench.json").read_text() == "mine"
