"""Mutated checkpoints are sliced rightly or refused; what ever failed stays as a case."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from depthcut.errors import DepthcutError
from tests.fuzz.bases import BASES, FOLDERS, LAYERS, TYPES, base
from tests.fuzz.cases import KINDS, Case, TooSlowError, WrongError, drawn, limited_memory, run
from tests.fuzz.corpus import FOLDER, read_case, write_case
from tests.fuzz.mutators import Pairs, Raw, encode, mutated_json

WHOLE = (0, 1, 4, 5)


def test_1500_mutated_checkpoints_are_sliced_rightly_or_refused() -> None:
    # A process of its own: the limit of memory counts from what it has, here without torch.
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--cases", "1500", "--seed", "1"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_what_failed_once_fails_no_more(path: Path, tmp_path: Path) -> None:
    with limited_memory():
        run(read_case(path), tmp_path / "case")


@pytest.mark.parametrize("name", [name for name in BASES if name not in {"gguf", "adapter"}])
def test_every_base_is_sliced_as_it_is(name: str, tmp_path: Path) -> None:
    case = Case("config", name, "config.json", base(name)["config.json"], WHOLE)
    if name == "shared-cache":  # the last two layers use what those before them compute
        case = replace(case, kept=(2, 3, 4, 5))
    assert run(case, tmp_path / "case") == "sliced"


@pytest.mark.parametrize(
    ("kind", "file"), [("gguf", "model.gguf"), ("adapter", "adapter_config.json")]
)
def test_the_other_bases_are_sliced_as_they_are(kind: str, file: str, tmp_path: Path) -> None:
    assert run(Case(kind, kind, file, base(kind)[file], WHOLE), tmp_path / "case") == "sliced"


def test_most_model_types_are_sliced_as_they_are(tmp_path: Path) -> None:
    outcomes = []
    for number, name in enumerate(TYPES[::8]):
        case = Case("fields", name, "config.json", base(name)["config.json"], (0, 1, 2, 3))
        outcomes.append(run(case, tmp_path / str(number)))
    assert outcomes.count("sliced") > 0.7 * len(outcomes)


# --- the judge ---------------------------------------------------------------------------------


def swapped(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    one, other = b".0.attn", b".1.attn"
    file.write_bytes(
        content.replace(one, b".?.attn").replace(other, one).replace(b".?.attn", other)
    )


def flipped(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))


def miscounted(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(file.read_text().replace("full_attention", "sliding_attention", 1))


@pytest.mark.parametrize("spoil", [swapped, flipped, miscounted])
def test_a_wrong_result_is_seen(
    spoil: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fuzz import cases

    real = cases.slice_checkpoint

    def spoiled(folder: Path, plan: object, out: Path, **options: object) -> None:
        real(folder, plan, out, **options)  # type: ignore[arg-type]
        spoil(out)

    monkeypatch.setattr(cases, "slice_checkpoint", spoiled)
    case = Case("config", "llama", "config.json", base("llama")["config.json"], WHOLE)
    with pytest.raises(WrongError):
        run(case, tmp_path / "case")


def test_what_is_left_behind_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.fuzz import cases

    def leaves(folder: Path, plan: object, out: Path, **options: object) -> None:
        (out.parent / ".out.partial-1").mkdir()
        raise DepthcutError("no")

    monkeypatch.setattr(cases, "slice_checkpoint", leaves)
    case = Case("config", "llama", "config.json", base("llama")["config.json"], WHOLE)
    with pytest.raises(WrongError, match="lies there"):
        run(case, tmp_path / "case")


def test_a_case_that_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.fuzz import cases

    def endless(*arguments: object, **options: object) -> None:
        while True:
            pass

    monkeypatch.setattr(cases, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(cases, "slice_checkpoint", endless)
    case = Case("config", "llama", "config.json", base("llama")["config.json"], WHOLE)
    with pytest.raises(TooSlowError):
        run(case, tmp_path / "case")


# --- the mutators ------------------------------------------------------------------------------


def test_a_case_follows_from_its_number() -> None:
    assert [drawn(3, number) for number in range(50)] == [drawn(3, number) for number in range(50)]
    assert {drawn(3, number).kind for number in range(500)} == set(KINDS)


def test_mutated_json_differs_and_keeps_twice_named_keys() -> None:
    text = base("llama")["config.json"]
    made = {mutated_json(text, Random(number)) for number in range(200)}
    assert len(made) > 150
    assert encode(Pairs([("a", 1), ("a", Raw("NaN"))])) == b'{"a":1,"a":NaN}'


def test_a_case_can_be_kept(tmp_path: Path) -> None:
    for number in range(300):
        case = drawn(0, number)
        assert read_case(write_case(tmp_path, "x", case)) == case


def test_bases_have_the_layers_that_cuts_are_drawn_for() -> None:
    assert max(WHOLE) < LAYERS
    assert set(FOLDERS) < set(BASES)
