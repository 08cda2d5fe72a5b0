"""Python that a model wrote, run where it can do no harm: `run_python`.

The code runs in a process of its own (`sandboxed.py`) which gives up, for good and before it reads
the code, every system call but those that computing needs:

- no processes and no threads are started, no program, no signal is sent;
- no socket is opened, so nothing reaches a network or another process;
- no file is opened for writing, made, renamed or removed, anywhere;
- memory, processor time and the number of open files are limited, what it prints goes nowhere,
  its environment is empty, its working folder empty and removed afterwards;
- where Linux has Landlock (5.13), no file is read but Python's own library and the system's.

What stays possible: to use up the seconds and the memory given; without Landlock, to read what
the user may read (there is nowhere to send it). The tests run in the same process as the code, so
code written to deceive could find the pipe of the verdict and forge it; code that merely leaves
early, prints or raises cannot, as the word that means "passed" is drawn anew each time, arrives
by a pipe that is read only after the tests, and has to be sent back.
"""

import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from depthcut.errors import SettingsError

_CHILD = Path(__file__).with_name("sandboxed.py")
_READY = b"ready\n"
_VERDICT_BYTES = 4096
_STARTING_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    """It ran to its end: no exception, no limit, no leaving early."""
    reason: str
    """Why not, in a few words; empty if it passed. May hold what the program wrote."""


def run_python(code: str, *, seconds: float = 10, memory_bytes: int = 2**30) -> Outcome:
    """Run a program that nobody has read, with its tests at its end.

    Args:
        code: The program. It runs as `exec(code, {})` does, by this Python with its standard
            library alone.
        seconds: Of wall time and of processor time, counted from the first line of the code.
        memory_bytes: Of address space, Python itself (some 50 MB) included.

    Returns:
        Whether it ran to its end.

    Raises:
        SettingsError: This system cannot confine it, or the limits leave no room for Python.
    """
    if sys.platform != "linux":
        raise SettingsError(
            f"code that a model wrote is run only under Linux, where it can be confined; this is "
            f"{sys.platform}: leave such tasks out (humaneval, mbpp), or use a container"
        )
    if seconds <= 0 or memory_bytes <= 0:
        raise SettingsError(f"seconds {seconds}, memory_bytes {memory_bytes}: both must be above 0")
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as verdict, tempfile.TemporaryDirectory() as folder:
        try:
            process = _started(writer, folder, seconds=seconds, memory_bytes=memory_bytes)
        finally:
            os.close(writer)
        try:
            return _outcome(process, verdict.fileno(), code, seconds)
        finally:
            _end(process)


def require_sandbox() -> None:
    """Find out now whether code can be confined here.

    Raises:
        SettingsError: It cannot; the message says why.
    """
    outcome = run_python("assert 1 + 1 == 2", seconds=_STARTING_SECONDS)
    if not outcome.passed:
        raise SettingsError(f"the sandbox for code that a model wrote fails: {outcome.reason}")


def _started(
    writer: int, folder: str, *, seconds: float, memory_bytes: int
) -> "subprocess.Popen[bytes]":
    limits = (str(writer), str(math.ceil(seconds) + 1), str(memory_bytes))
    return subprocess.Popen(
        # Isolated from the environment and the user's packages; no bytecode is written.
        [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_CHILD), *limits],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(writer,),
        cwd=folder,
        env={},
        start_new_session=True,
    )


def _outcome(
    process: "subprocess.Popen[bytes]", verdict: int, code: str, seconds: float
) -> Outcome:
    said = _read(verdict, len(_READY), _STARTING_SECONDS)
    if said != _READY:
        said = (said or b"") + (_read(verdict, _VERDICT_BYTES, _STARTING_SECONDS) or b"")
        why = said.decode(errors="replace") or "Python did not start"
        raise SettingsError(f"code that a model wrote cannot be confined on this system: {why}")
    word = secrets.token_hex(16).encode()
    end = time.monotonic() + seconds
    _send(process, code.encode(errors="replace"), word)
    heard = _read(verdict, _VERDICT_BYTES, seconds)
    if heard == word:
        return Outcome(True, "")
    if heard:
        return Outcome(False, heard.decode(errors="replace"))
    try:  # a pipe closed early does not mean that it ended
        return Outcome(False, _left(process.wait(max(0.0, end - time.monotonic()))))
    except subprocess.TimeoutExpired:
        return Outcome(False, f"ran for longer than {seconds:g} seconds")


def _send(process: "subprocess.Popen[bytes]", code: bytes, word: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # it ended: its verdict says the rest
        pipe.write(len(code).to_bytes(8, "little") + code + word)


def _read(pipe: int, most: int, seconds: float) -> bytes | None:
    """What a pipe says until its other end closes or `most` bytes came; None: not in time."""
    heard = b""
    end = time.monotonic() + seconds
    while len(heard) < most:
        if not select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            return None
        part = os.read(pipe, most - len(heard))
        if not part:
            break
        heard += part
    return heard


def _left(status: int) -> str:
    """Why a process that said nothing ended."""
    if status == -signal.SIGXCPU:
        return "used up its processor time"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"left with exit code {status} before its tests had ended"


def _end(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin:
        with suppress(BrokenPipeError):
            process.stdin.close()
    process.wait()
