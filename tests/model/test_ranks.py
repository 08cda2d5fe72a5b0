"""Several processes measure what one measures."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from depthcut.cli import COMMANDS, IN_PROCESSES, main
from depthcut.errors import SettingsError
from depthcut.records import Search, Survey, read_record
from depthcut.searching.journal import Entry, Journal
from depthcut.searching.trials import Trials
from depthcut.surveying.survey import Observations
from tests.processes import together
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

SURVEY = ["--criteria", "all", "--tokens", "1500", "--context", "32", "--batch-size", "4"]
SEARCH = ["--drop", "1:3", "--tokens", "1000", "--context", "32", "--batch-size", "4"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(build_tiny("llama"), tmp_path_factory.mktemp("model"))
    tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def surveyed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return survey(model, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def searched(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    return search(model, tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_survey_what_one_surveys(
    model: Path, surveyed: Survey, tmp_path: Path, count: int
) -> None:
    refuse_differences(survey(model, tmp_path, count), surveyed)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_find_what_one_finds(
    model: Path, searched: Search, tmp_path: Path, count: int
) -> None:
    assert untimed(search(model, tmp_path, count)) == untimed(searched)


@pytest.mark.slow
def test_accelerate_launches_them(model: Path, surveyed: Survey, tmp_path: Path) -> None:
    found = tmp_path / "survey.json"
    launch = [Path(sys.executable).with_name("accelerate"), "launch", "--multi_gpu"]
    depthcut = ["--num_processes", "2", "-m", "depthcut", "survey", model, *SURVEY, "--out", found]
    subprocess.run([*launch, *depthcut], check=True, capture_output=True)
    refuse_differences(read_record(found, Survey), surveyed)


def test_processes_find_the_same_parts_of_layers(model: Path, tmp_path: Path) -> None:
    by_parts = ["--granularity", "sublayer"]
    one, two = (search(model, tmp_path / str(count), count, by_parts) for count in (1, 2))
    assert untimed(two) == untimed(one)


def test_more_processes_than_batches_find_the_same(model: Path, tmp_path: Path) -> None:
    few = ["--criteria", "all", "--tokens", "150", "--context", "32", "--batch-size", "4"]
    one, two = (survey(model, tmp_path / str(count), count, few) for count in (1, 3))
    refuse_differences(two, one)


def test_processes_settle_after_the_same_sequence(model: Path, tmp_path: Path) -> None:
    settled = ["--tokens", "3000", "--context", "8", "--batch-size", "4"]
    settled += ["--confidence", "0.9", "--settle", "2"]
    one, two = (survey(model, tmp_path / str(count), count, settled) for count in (1, 2))
    assert one.stopping is not None
    assert one.stopping.tokens < one.stopping.of_tokens
    assert two.stopping == one.stopping
    refuse_differences(two, one)


def test_processes_stop_at_the_same_evaluation(model: Path, tmp_path: Path) -> None:
    budget = ["--evaluations", "4.3"]
    one, two = (search(model, tmp_path / str(count), count, budget) for count in (1, 2))
    assert not one.complete
    assert untimed(two) == untimed(one)


def test_the_clock_of_the_first_one_counts(model: Path, searched: Search, tmp_path: Path) -> None:
    found = search(model, tmp_path, 2, ["--minutes", "10"], before=be_ahead_of_time)
    assert found.complete
    assert [point.removed for point in found.frontier] == [
        point.removed for point in searched.frontier
    ]


def be_ahead_of_time() -> None:
    Trials.seconds = property(lambda _: 1e6)  # type: ignore[assignment, method-assign]


def test_processes_go_on_where_one_was_killed(
    model: Path, searched: Search, tmp_path: Path
) -> None:
    out = tmp_path / "search.json"
    (killed,) = together(
        ["search", str(model), *SEARCH, "--out", str(out)], 1, before=die_on_the_way
    )
    assert killed.code == 130
    assert not out.exists()
    found = search(model, tmp_path, 2)
    assert [point.removed for point in found.frontier] == [
        point.removed for point in searched.frontier
    ]
    assert [point.loss for point in found.frontier] == [point.loss for point in searched.frontier]


def die_on_the_way() -> None:
    add, written = Journal.add, []

    def dying(self: Journal, entry: Entry) -> None:
        add(self, entry)
        written.append(entry)
        if len(written) == 30:
            raise KeyboardInterrupt

    Journal.add = dying  # type: ignore[method-assign]


def fail() -> None:
    def failing(*_: object) -> None:
        raise SettingsError("no such thing")

    Observations.add = failing  # type: ignore[method-assign]


def fall() -> None:
    Observations.add = lambda *_: 1 / 0  # type: ignore[method-assign]


def vanish() -> None:
    Observations.add = lambda *_: os._exit(0)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("before", "message"), [(fail, "depthcut: no such thing\n"), (fall, "ZeroDivisionError")]
)
def test_one_that_fails_ends_all(
    model: Path, tmp_path: Path, before: Callable[[], None], message: str
) -> None:
    out = tmp_path / "survey.json"
    began = time.monotonic()
    command = ["survey", str(model), *SURVEY, "--out", str(out)]
    first, second = together(command, 2, before=before)
    assert time.monotonic() - began < 60
    assert first.code
    assert second.code
    assert message in second.messages
    assert message not in first.messages
    assert not out.exists()


def test_one_that_vanishes_ends_all(model: Path, tmp_path: Path) -> None:
    command = ["survey", str(model), *SURVEY, "--out", str(tmp_path / "survey.json")]
    first, _ = together(command, 2, before=vanish)
    assert first.code == 2
    assert "waited for another one that ended" in first.messages


def test_processes_that_measure_something_else_are_refused(model: Path, tmp_path: Path) -> None:
    command = ["survey", str(model), "--out", str(tmp_path / "survey.json")]
    first, second = together([*command, *SURVEY], 2, second=[*command, "--context", "64"])
    assert first.code == 2
    assert second.code
    assert "have another model, text or setting" in first.messages


def test_what_all_have_to_say_one_says(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "survey.json"
    command = ["survey", str(model), *SURVEY, "--out", str(out), "--device", "map"]
    first, second = together(command, 2)
    assert first.code == 2
    assert "device map spreads a model over all GPUs for one process" in first.messages
    assert second.messages == ""


def test_the_first_one_prints(model: Path, tmp_path: Path) -> None:
    command = ["survey", str(model), *SURVEY, "--out", str(tmp_path / "survey.json"), "--json"]
    first, second = together(command, 2)
    assert msgspec.json.decode(first.output, type=Survey).text.sequences == 47
    assert second.output == ""
    assert "survey" in first.messages
    assert second.messages == ""


def test_standard_input_has_one_reader(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "survey.json"
    first, _ = together(["survey", str(model), "--text", "-", "--out", str(out)], 2)
    assert first.code == 2
    assert "save standard input to a file" in first.messages


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - set(IN_PROCESSES)))
def test_a_command_that_only_one_process_can_do_is_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as ended:
        main([command, "x"])
    assert ended.value.code == 2
    assert f"{command} runs in one process, and 2 were started" in capsys.readouterr().err


def survey(model: Path, folder: Path, count: int, settings: list[str] = SURVEY) -> Survey:
    out = folder / "survey.json"
    ended = together(["survey", str(model), *settings, "--out", str(out)], count)
    assert [each.code for each in ended] == [0] * count, ended
    return read_record(out, Survey)


def search(
    model: Path,
    folder: Path,
    count: int,
    more: list[str] | None = None,
    *,
    before: Callable[[], None] | None = None,
) -> Search:
    folder.mkdir(exist_ok=True)
    out = folder / "search.json"
    command = ["search", str(model), *SEARCH, *(more or ()), "--out", str(out)]
    ended = together(command, count, before=before)
    assert [each.code for each in ended] == [0] * count, ended
    assert not Path(f"{out}.journal").exists()
    return read_record(out, Search)


def refuse_differences(found: Survey, one: Survey) -> None:
    assert found.norms == one.norms
    for score in one.scores:
        other = found.find(score.criterion, score.tokens)
        assert other.per_sequence == score.per_sequence
        if score.criterion == "linear-map":  # sums of the processes are added in another order
            for row, expected in zip(other.mean, score.mean, strict=True):
                assert row == pytest.approx(expected, rel=1e-9)
        else:
            assert other == score


def untimed(record: Search) -> Search:
    """A search without when and how long."""
    replace = msgspec.structs.replace
    cost = replace(record.cost, seconds=0)
    frontier = tuple(
        replace(point, cost=replace(point.cost, seconds=0) if point.cost else None)
        for point in record.frontier
    )
    return replace(
        record,
        origin=replace(record.origin, seconds=0, created=""),
        cost=cost,
        frontier=frontier,
    )
