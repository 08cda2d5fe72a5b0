import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import msgspec
import pytest

from depthcut.errors import OutputError
from depthcut.journals import Journal


class Line(msgspec.Struct, frozen=True):
    number: int
    text: str = "é\n"


def journal(path: Path, inputs: str = "a") -> Journal[Line]:
    return Journal(path, Line, inputs=inputs)


def fill(path: Path, count: int) -> None:
    with journal(path) as found:
        for number in range(count):
            found.append(Line(number))


def test_lines_are_there_when_it_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "j"
    fill(path, 3)
    with journal(path) as found:
        assert list(found) == list(found) == [Line(0), Line(1), Line(2)]
        found.append(Line(3))
        assert len(list(found)) == 4
        found.delete()
    assert not path.exists()


def test_what_a_kill_cut_short_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, 3)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        with journal(path) as found:
            kept = len(list(found))
            assert kept == max(0, whole[:length].count(b"\n") - 1)
            found.append(Line(9))
        assert path.read_bytes() == b"".join(lines[: kept + 1]) + lines[1].replace(b":0", b":9")


def test_a_journal_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    fill(tmp_path / "j", 0)
    assert list(tmp_path.iterdir()) == []
    fill(tmp_path / "j", 1)
    fill(tmp_path / "j", 0)
    assert (tmp_path / "j").exists()


@pytest.mark.parametrize("content", [b"hello", b'{"text": "mine"}\n', b"\xff\xfe\n", b"\n"])
def test_another_file_of_that_name_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(content)
    with pytest.raises(OutputError, match="is no journal of depthcut"):
        journal(path)
    assert path.read_bytes() == content


def test_other_inputs_are_refused_and_the_lines_kept(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, 2)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="begun with other settings"):
        journal(path, inputs="b")
    assert path.read_bytes() == before


def test_two_cannot_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "j"
    fill(path, 1)
    with journal(path) as first, pytest.raises(OutputError, match="another depthcut is writing"):
        journal(path)
    with journal(path):
        pass
    assert first.path == path


def test_a_file_system_without_locks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    fill(tmp_path / "j", 2)
    with journal(tmp_path / "j") as found:
        assert list(found) == [Line(0), Line(1)]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another --out"):
        journal(tmp_path / "file" / "j")


def test_a_full_disk_keeps_the_lines_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "j", os.write
    fill(path, 2)

    def half(handle: int, content: bytes) -> int:
        if len(content) > 5:
            return written(handle, content[:5])
        raise OSError(28, "No space left on device")

    with journal(path) as found:
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OutputError, match=r"No space left .* goes on where it stopped"):
            found.append(Line(2))
        monkeypatch.undo()
        assert list(found) == [Line(0), Line(1)]


def _append_for_ever(path: Path) -> None:
    with journal(path) as found:
        for number in range(10**9):
            found.append(Line(number, "x" * 5000))


def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "j"
    process = multiprocessing.get_context("fork").Process(target=_append_for_ever, args=(path,))
    process.start()
    while not path.exists() or path.stat().st_size < 50_000:
        assert process.is_alive()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with journal(path) as found:
        numbers = [line.number for line in found]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 9
