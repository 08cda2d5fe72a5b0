"""Files and folders that appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from depthcut import files
from depthcut.errors import OutputError
from depthcut.files import new_folder, refuse_existing, write_file

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill_up(out: Path) -> None:
    with new_folder(out) as working:
        (working / "a").write_text("1")
        full_disk()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --- folders -----------------------------------------------------------------------------------


def test_a_new_folder_appears_when_its_work_is_done(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as working:
        assert not out.exists()
        (working / "a").write_text("1")
        (working / "sub").mkdir()
        (working / "sub" / "b").write_text("2")
    assert names(out) == ["a", "sub"]
    assert (out / "sub" / "b").read_text() == "2"
    assert names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fails() -> None:
        with new_folder(tmp_path / "out") as working:
            (working / "a").write_text("1")
            raise error

    with pytest.raises(error):
        fails()
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["folder", "file", "broken link"])
def test_what_exists_is_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already: choose another --out"):
        refuse_existing(out)
    with pytest.raises(OutputError, match="exists already"), new_folder(out):
        pytest.fail("the work began")
    assert names(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def too_late() -> None:
        with new_folder(out):
            out.mkdir()
            (out / "theirs").write_text("2")

    with pytest.raises(OutputError, match="exists already"):
        too_late()
    assert names(tmp_path) == ["out"]
    assert names(out) == ["theirs"]


def test_free_space_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    message = r"no space left .*1,000,.* bytes are needed and .* are free"
    with (
        pytest.raises(OutputError, match=message),
        new_folder(tmp_path / "out", needed_bytes=10**18),
    ):
        pytest.fail("the work began")
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no space left .* nothing was kept"):
        fill_up(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_while_syncing_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with (
        pytest.raises(OutputError, match="no space left"),
        new_folder(tmp_path / "out") as working,
    ):
        (working / "a").write_text("1")
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError), new_folder(tmp_path / "file" / "out"):
        pytest.fail("the work began")


def test_a_name_too_long_is_explained(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), new_folder(tmp_path / ("x" * 300)):
        pytest.fail("the work began")


@not_as_root
def test_a_parent_without_rights_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot write"), new_folder(tmp_path / "out"):
            pytest.fail("the work began")
    finally:
        tmp_path.chmod(0o700)


KILLED = """
import pathlib, sys, time
from depthcut.files import new_folder
with new_folder(pathlib.Path(sys.argv[1])) as working:
    (working / "a").write_text("1")
    print("working", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the working folder of tmp_path/out."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_a_killed_writer_left_is_removed_by_the_next(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(names(tmp_path)) == 1  # hidden, and not out
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as working:
        (working / "b").write_text("2")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["b"]


def test_a_living_writers_work_is_left_alone(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    with new_folder(tmp_path / "out") as working:
        (working / "b").write_text("2")
    (theirs,) = [name for name in names(tmp_path) if name != "out"]
    assert names(tmp_path / theirs) == ["a"]
    assert writer.poll() is None


def test_an_interrupted_writer_leaves_nothing(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    writer.send_signal(signal.SIGINT)
    writer.wait()
    assert names(tmp_path) == []


def test_similar_names_do_not_touch_each_other(tmp_path: Path) -> None:
    (tmp_path / ".out.partial-notes").write_text("ours by name: removed")
    (tmp_path / ".output.partial-x").mkdir()
    (tmp_path / "out.partial-x").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".output.partial-x", "out", "out.partial-x"]


@pytest.mark.parametrize("name", ["a[b]", "a*", "a b", "ä", "-a"])
def test_names_with_odd_characters_work_and_are_cleaned(tmp_path: Path, name: str) -> None:
    abandoned = tmp_path / f".{name}.partial-x"
    abandoned.mkdir()
    with new_folder(tmp_path / name) as working:
        (working / "a").write_text("1")
    assert names(tmp_path) == [name]


# --- files -------------------------------------------------------------------------------------


def test_a_file_is_written_and_readable_by_all(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file"
    write_file(file, b"content")
    assert file.read_bytes() == b"content"
    assert file.stat().st_mode & 0o777 == 0o644
    assert names(file.parent) == ["file"]


def test_a_file_is_overwritten_only_when_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_file(file, b"one")
    with pytest.raises(OutputError, match="exists already"):
        write_file(file, b"two")
    assert file.read_bytes() == b"one"
    write_file(file, b"two", overwrite=True)
    assert file.read_bytes() == b"two"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_file(file, b"one")
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(OutputError, match="no space left"):
        write_file(file, b"two", overwrite=True)
    assert file.read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


def test_a_folder_in_the_files_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_file(tmp_path / "file", b"x", overwrite=True)
    assert names(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new_file_never_a_part(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = [bytes([i]) * 200_000 for i in range(2)]
    write_file(file, contents[0])
    code = (
        "import pathlib, sys\nfrom depthcut.files import write_file\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "for i in range(200): write_file(file, bytes([i % 2]) * 200_000, overwrite=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, file])
    seen = set()
    while process.poll() is None:
        seen.add(file.read_bytes())
        time.sleep(0.001)
    assert process.returncode == 0
    assert seen <= set(contents)


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"\xff")
    with pytest.raises(OutputError, match=r"is not UTF-8: choose another --out"):
        files.refuse_existing(out)
