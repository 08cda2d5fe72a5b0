"""A killed search goes on: by its journal, whatever the method, wherever it died."""

import functools
import math
import os
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest

import depthcut
from depthcut.errors import OutputError
from depthcut.records import Search, read_record
from depthcut.searching.journal import Entry, Gates, Journal
from depthcut.searching.methods import METHODS
from depthcut.settings import SearchSettings
from tests.processes import together
from tests.searching.searches_for_tests import search
from tests.tiny import build_tiny, save_tiny, tiny_tokenizer

ENTRY = Entry((1, 4), 2, (1.5, 0.1), (0.25, 1e-9), (0.5, 3.0), 7, 3, 0.75)
GATES = Gates(1, (((0.5, -1.0), (2.0, 1e-12)),), 9, 4, 1.0)
EVOLVE = {"method": "evolve", "tokens": 600, "context": 24, "batch_size": 4, "drop": "2:3"}
EVOLVE |= {"generations": 6, "offspring": 6, "tokens_per_selection": (100, 600)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(build_tiny("llama", layers=8), tmp_path_factory.mktemp("model"))
    tiny_tokenizer(folder)
    return folder


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, "a") as journal:
        journal.add(ENTRY)
        journal.add(GATES)
    with Journal(path, "a") as again:
        assert again.entries == [ENTRY]
        assert again.gates == [GATES]
        assert again.last == GATES
        assert again.batch_size is None
        again.add(ENTRY._replace(batch=0))
        assert again.batch_size == 2
    with Journal(path, "a") as again:
        assert again.entries == [ENTRY, ENTRY._replace(batch=0)]


def test_what_is_no_number_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, "a") as journal:
        journal.add(ENTRY._replace(loss=(math.nan, 2.0), divergence=(math.inf, 1.0)))
        journal.add(GATES._replace(rows=(((math.nan, 3.0),),)))
    with Journal(path, "a") as again:
        (entry,), (gates,) = again.entries, again.gates
    assert str(entry.loss) == "(nan, 2.0)"
    assert str(entry.divergence) == "(nan, 1.0)"
    assert entry.last_divergence == ENTRY.last_divergence
    assert str(gates.rows) == "(((nan, 3.0),),)"


def test_the_journal_of_another_search_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    with pytest.raises(KeyboardInterrupt):
        die_after(5, lambda: depthcut.search(model, SearchSettings(**EVOLVE), out=out))  # type: ignore[arg-type]
    for changes in ({"seed": 1}, {"tokens": 500}, {"offspring": 5}):
        with pytest.raises(OutputError, match=r"was begun with other settings"):
            depthcut.search(model, SearchSettings(**{**EVOLVE, **changes}), out=out)  # type: ignore[arg-type]
    assert out.with_name("search.json.journal").exists()


def test_a_record_that_exists_is_refused_before_anything_is_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "search.json"
    out.write_text("here")
    monkeypatch.setattr("depthcut.searching.search.search_model", None)
    with pytest.raises(OutputError, match="exists"):
        depthcut.search(model, out=out)
    assert out.read_text() == "here"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dies_at", [1, 7, 30])
def test_every_method_goes_on_where_it_died(method: str, dies_at: int, tmp_path: Path) -> None:
    options = {"generations": 3, "offspring": 4, "error_rate": 0.05, "beam_width": 2}
    run = functools.partial(search, method, **options)
    whole, journal = run(), tmp_path / "j"
    try:
        die_after(dies_at, lambda: run(journal=journal))
    except KeyboardInterrupt:
        with Journal(journal, whole.origin.inputs) as left:
            assert len(left.entries) + len(left.gates) == dies_at
    record = run(journal=journal)
    with Journal(journal, whole.origin.inputs) as left:
        readings = [(entry.removed, entry.batch) for entry in left.entries]
    assert len(readings) == len(set(readings))  # nothing was measured twice
    assert found(record) == found(whole)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_any_moment_change_nothing(kills: int, model: Path, tmp_path: Path) -> None:
    whole = depthcut.search(model, SearchSettings(**EVOLVE), out=tmp_path / "whole.json")  # type: ignore[arg-type]
    out = tmp_path / "killed.json"
    journal = Path(f"{out}.journal")
    options = {**EVOLVE, "tokens_per_selection": "100 600"}
    arguments = ["search", str(model), "--out", str(out)]
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", *str(value).split()]
    readings = round(whole.cost.evaluations * 7)  # batches of the text
    for number in range(kills):
        lines = 1 + readings * (number + 1) // (kills + 1)
        before = functools.partial(kill_once_written, journal, lines, delay=0.0007 * number)
        (killed,) = together(arguments, 1, before=before)
        assert killed.code == -signal.SIGKILL, killed.messages
        assert not out.exists()
        assert len(journal.read_bytes().splitlines()) >= lines
    (ended,) = together(arguments, 1)
    assert ended.code == 0, ended.messages
    assert found(read_record(out, Search)) == found(whole)
    assert not journal.exists()


def found(record: Search) -> tuple[object, ...]:
    """All but what it took."""
    points = [msgspec.structs.replace(point, cost=None) for point in record.frontier]
    return record.origin.inputs, record.untouched, record.complete, record.cost.evaluations, points


def die_after(readings: int, run: object) -> None:
    add, written = Journal.add, []

    def dying(self: Journal, measured: Entry | Gates) -> None:
        add(self, measured)
        written.append(measured)
        if len(written) == readings:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", dying)
        run()  # type: ignore[operator]


def kill_once_written(journal: Path, lines: int, *, delay: float) -> None:
    """From a thread, and so at any moment."""

    def watch() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
