"""Slicing while the disk fills up, the process is killed, or the source changes."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from depthcut import files
from depthcut.checkpoint import copying
from depthcut.checkpoint.folder import open_checkpoint
from depthcut.errors import CheckpointError, OutputError
from depthcut.records import SliceRecord, read_record, write_record
from depthcut.slicing import slice_checkpoint
from depthcut.slicing.gguf import slice_gguf
from tests.slices import load_exactly, logits, logits_without, plan_without
from tests.tiny_gguf import tensors_of, write_gguf

Usage = namedtuple("Usage", "total used free")


def leave_nothing(place: Path) -> bool:
    return not place.exists() or not list(place.iterdir())


@pytest.mark.parametrize("at_call", [0, 3, 9, 15])
def test_a_disk_that_fills_up_leaves_nothing(
    tiny_llama_sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_call: int
) -> None:
    real, calls = copying._write_all, []

    def fills_up(target: int, content: memoryview) -> None:
        calls.append(len(content))
        if len(calls) > at_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(target, content)

    monkeypatch.setattr(copying, "_write_all", fills_up)
    with pytest.raises(OutputError, match=r"no space left on the disk for .*out: .* are free"):
        slice_checkpoint(
            tiny_llama_sharded, plan_without(tiny_llama_sharded, (2,)), tmp_path / "p" / "out"
        )
    assert leave_nothing(tmp_path / "p")


def test_a_disk_too_small_is_refused_before_copying(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_without(tiny_llama, (2,))
    free = int(open_checkpoint(tiny_llama).weight_bytes * 0.5)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - free, free))
    monkeypatch.setattr(copying, "_write_all", lambda *_: pytest.fail("copied"))
    with pytest.raises(OutputError, match=rf"are needed and {free:,} are free"):
        slice_checkpoint(tiny_llama, plan, tmp_path / "p" / "out")
    assert leave_nothing(tmp_path / "p")


def test_a_source_that_is_written_meanwhile_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "parent"
    shutil.copytree(tiny_llama, folder)
    plan, weights = plan_without(folder, (2,)), folder / "model.safetensors"
    real = copying.write_ranges

    def writing(target: Path, *arguments: object, **options: object) -> None:
        if target.name == weights.name:
            weights.write_bytes(weights.read_bytes()[::-1])
        real(target, *arguments, **options)

    monkeypatch.setattr("depthcut.slicing.checkpoint.write_ranges", writing)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        slice_checkpoint(folder, plan, tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


def test_a_source_that_shrinks_meanwhile_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "parent"
    shutil.copytree(tiny_llama, folder)
    plan, weights = plan_without(folder, (2,)), folder / "model.safetensors"
    real = copying.write_ranges

    def shrinking(target: Path, *arguments: object, **options: object) -> None:
        if target.name == weights.name:
            os.truncate(weights, weights.stat().st_size // 2)
        real(target, *arguments, **options)

    monkeypatch.setattr("depthcut.slicing.checkpoint.write_ranges", shrinking)
    with pytest.raises(CheckpointError, match="was changed meanwhile"):
        slice_checkpoint(folder, plan, tmp_path / "p" / "out")
    assert leave_nothing(tmp_path / "p")


SLOW_SLICE = """
import pathlib, sys, time
from depthcut.checkpoint import copying
from depthcut.records import Plan, read_record
from depthcut.slicing import slice_checkpoint
real = copying._write_all
def slowly(target, content):
    print("copying", flush=True)
    time.sleep(0.002)
    real(target, content)
copying._BUFFER_BYTES = 4096
copying._write_all = slowly
folder, plan, out = map(pathlib.Path, sys.argv[1:])
slice_checkpoint(folder, read_record(plan, Plan), out)
"""


@pytest.mark.parametrize("step", [1, 20, 50, 70])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_slice_leaves_no_folder_and_the_next_run_cleans_up(
    tiny_llama_sharded: Path, tmp_path: Path, step: int, how: signal.Signals
) -> None:
    plan, out = plan_without(tiny_llama_sharded, (2, 3)), tmp_path / "place" / "out"
    write_record(plan, tmp_path / "plan.json")
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_SLICE, tiny_llama_sharded, tmp_path / "plan.json", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    for _ in range(step):
        assert process.stdout.readline()
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    if how is signal.SIGKILL:
        assert not leave_nothing(out.parent), "the kill came too late to test anything"
    else:
        assert leave_nothing(out.parent)
    record = slice_checkpoint(tiny_llama_sharded, plan, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert read_record(out / "depthcut.json", SliceRecord) == record
    parent = load_exactly(tiny_llama_sharded)
    expected = logits_without(parent, "model.layers", (2, 3))
    assert torch.equal(logits(load_exactly(out)), expected)


# --- a disk that is really full, and reads that fail ---------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs the rights of root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk_is_refused_before_anything_is_written(
    tiny_llama: Path, small_disk: Path
) -> None:
    (small_disk / "other").write_bytes(bytes(1 << 20))
    with pytest.raises(OutputError, match=r"are needed and .* are free"):
        slice_checkpoint(tiny_llama, plan_without(tiny_llama, (2,)), small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


@pytest.mark.parametrize("left", [0, 4096, 100_000, 400_000])
def test_a_disk_that_others_fill_meanwhile_leaves_nothing(
    tiny_llama: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    plan, out = plan_without(tiny_llama, (2,)), small_disk / "out"
    real, disk_usage = files.remove_abandoned, shutil.disk_usage

    def fill(path: Path) -> None:
        real(path)
        if not (small_disk / "other").exists():
            free = disk_usage(small_disk).free
            (small_disk / "other").write_bytes(bytes(free - left))

    lots = Usage(10**9, 0, 10**9)  # as it was when it was asked
    with monkeypatch.context() as patched:
        patched.setattr(files, "remove_abandoned", fill)
        patched.setattr(files.shutil, "disk_usage", lambda _: lots)
        with pytest.raises(OutputError, match="no space left on the disk"):
            slice_checkpoint(tiny_llama, plan, out)
    assert [path.name for path in small_disk.iterdir()] == ["other"]
    (small_disk / "other").unlink()
    slice_checkpoint(tiny_llama, plan, out)
    assert [path.name for path in small_disk.iterdir()] == ["out"]


@pytest.mark.parametrize("at_call", [0, 1, 4, 7])
@pytest.mark.parametrize("how", ["fails", "ends"])
def test_a_read_error_in_the_middle_leaves_nothing(
    tiny_llama_sharded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at_call: int,
    how: str,
) -> None:
    plan, out = plan_without(tiny_llama_sharded, (2,)), tmp_path / "place" / "out"
    real, calls = os.preadv, []

    def breaks(handle: int, buffers: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) <= at_call:
            return real(handle, buffers, offset)
        if how == "fails":
            raise OSError(errno.EIO, "Input/output error")
        return 0

    message = {"fails": r"cannot read .*: Input/output error", "ends": "ended at byte"}[how]
    with monkeypatch.context() as patched:
        patched.setattr(copying.os, "preadv", breaks)
        with pytest.raises(CheckpointError, match=message):
            slice_checkpoint(tiny_llama_sharded, plan, out)
    assert leave_nothing(out.parent)
    slice_checkpoint(tiny_llama_sharded, plan, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


# --- GGUF --------------------------------------------------------------------------------------


SLOW_GGUF = """
import pathlib, sys, time
from depthcut.checkpoint import copying
from depthcut.slicing.gguf import slice_gguf
real = copying._write_all
def slowly(target, content):
    print("copying", flush=True)
    time.sleep(0.002)
    real(target, content)
copying._BUFFER_BYTES = 4096
copying._write_all = slowly
slice_gguf(pathlib.Path(sys.argv[1]), (0, 1, 4, 5), pathlib.Path(sys.argv[2]))
"""


@pytest.mark.parametrize("step", [1, 5, 30])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_cut_of_gguf_leaves_no_file_and_the_next_run_cleans_up(
    tmp_path: Path, step: int, how: signal.Signals
) -> None:
    file, out = write_gguf(tmp_path / "model.gguf"), tmp_path / "place" / "out.gguf"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_GGUF, file, out],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    for _ in range(step):
        assert process.stdout.readline()
    process.send_signal(how)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    assert leave_nothing(out.parent) is (how is signal.SIGINT), "the kill came too late"
    slice_gguf(file, (0, 1, 4, 5), out)
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]
    before, after = tensors_of(file), tensors_of(out)
    assert after["blk.2.ffn_up.weight"] == before["blk.4.ffn_up.weight"]


def test_a_read_error_while_cutting_gguf_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write_gguf(tmp_path / "model.gguf"), tmp_path / "place" / "out.gguf"

    def breaks(handle: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(copying.os, "preadv", breaks)
    with pytest.raises(CheckpointError, match=r"model\.gguf: Input/output error"):
        slice_gguf(file, (0, 1, 4, 5), out)
    assert leave_nothing(out.parent)


MEASURED = """
import pathlib, sys
from depthcut.records import Plan, read_record
from depthcut.slicing import slice_checkpoint
folder, plan, out = map(pathlib.Path, sys.argv[1:])
slice_checkpoint(folder, read_record(plan, Plan), out)
heavy = {"torch", "transformers", "numpy", "datasets"} & set(sys.modules)
status = pathlib.Path("/proc/self/status").read_text()  # getrusage counts the parent's pages too
print(status.split("VmHWM:")[1].split()[0], *heavy)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_small_and_no_torch_is_imported(tiny_llama: Path, tmp_path: Path) -> None:
    write_record(plan_without(tiny_llama, (2,)), tmp_path / "plan.json")
    printed = subprocess.run(
        [sys.executable, "-c", MEASURED, tiny_llama, tmp_path / "plan.json", tmp_path / "out"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert printed[1:] == []
    assert int(printed[0]) * 1024 < 120e6
