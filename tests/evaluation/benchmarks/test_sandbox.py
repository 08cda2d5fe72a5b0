import os
import socket
import struct
import sys
from pathlib import Path

import pytest

from depthcut.errors import SettingsError
from depthcut.evaluation.benchmarks import sandbox, sandboxed
from depthcut.evaluation.benchmarks.sandbox import Outcome, require_sandbox, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def processes_with(word: str) -> list[str]:
    """Command lines and names of processes that hold a word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes() + (folder / "comm").read_bytes()
        except OSError:
            continue
        if word.encode() in line:
            found.append(f"{folder.name}: {line!r}")
    return found


def test_a_program_that_ends_has_passed() -> None:
    assert run_python("def add(a, b):\n    return a + b\nassert add(2, 3) == 5") == Outcome(
        True, ""
    )


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("assert 1 + 1 == 3, 'sum'", "AssertionError: sum"),
        ("x = (", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("x = '\ud800'", "AssertionError"),
        ("input()", "EOFError"),
    ],
)
def test_a_program_that_raises_has_failed_and_says_how(code: str, reason: str) -> None:
    outcome = run_python(f"{code}\nassert False")
    assert not outcome.passed
    assert outcome.reason.startswith(reason)


@pytest.mark.parametrize(
    "leave",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os, signal; signal.raise_signal(signal.SIGKILL)",
        "class Quiet(BaseException):\n    def __str__(self): raise KeyboardInterrupt\nraise Quiet",
        "import sys; sys.modules['__main__'].main = None; raise GeneratorExit",
    ],
)
def test_leaving_before_the_tests_is_no_pass(leave: str) -> None:
    outcome = run_python(f"{leave}\nassert False")
    assert not outcome.passed
    assert outcome.reason


def test_a_word_in_every_open_pipe_is_no_pass() -> None:
    code = """
import os
for place in range(1024):
    try:
        os.write(place, b"ready\\n0123456789abcdef0123456789abcdef")
    except OSError:
        pass
os._exit(0)
"""
    assert not run_python(code).passed


def test_a_closed_verdict_does_not_buy_time() -> None:
    code = """
import os, time
for place in range(3, 64):
    try:
        os.close(place)
    except OSError:
        pass
time.sleep(60)
"""
    assert run_python(code, seconds=1).reason == "ran for longer than 1 seconds"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "while True: print('x' * 1000)",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal as s\nfor each in (2, 15, 24): s.signal(each, s.SIG_IGN)\nwhile True: pass",
    ],
)
def test_endless_programs_are_stopped(code: str) -> None:
    outcome = run_python(code, seconds=0.5)
    assert not outcome.passed
    assert outcome.reason == "ran for longer than 0.5 seconds"


def test_a_program_that_eats_memory_is_stopped() -> None:
    for code in ("x = bytearray(2**40)", "x = []\nwhile True: x.append(bytearray(2**24))"):
        outcome = run_python(code, memory_bytes=2**28)
        assert not outcome.passed
        assert outcome.reason.startswith("MemoryError")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nwhile True: os.fork()",
        "import os\nif os.fork() == 0: os.execv('/bin/sleep', ['outlives-the-sandbox', '60'])",
        "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)",
        "import os; os.posix_spawn('/bin/sleep', ['outlives-the-sandbox', '60'], {})",
        "import os; os.execv('/bin/sleep', ['outlives-the-sandbox', '60'])",
        "import multiprocessing as m; m.Process(target=print).start()",
        "import threading; threading.Thread(target=print).start()",
        "import ctypes\nassert ctypes.CDLL(None).syscall(435, None, 0) != -1",  # clone3
        "import ctypes\nassert ctypes.CDLL(None).syscall(425, 8, None) != -1",  # io_uring_setup
    ],
)
def test_no_process_and_no_thread_is_started(code: str) -> None:
    outcome = run_python(code, seconds=5)
    assert not outcome.passed
    assert "PermissionError" in outcome.reason or "Error" in outcome.reason
    assert processes_with("outlives-the-sandbox") == []
    assert processes_with(sandboxed.__file__) == []


def test_no_signal_reaches_another_process() -> None:
    for code in (
        f"import os; os.kill({os.getpid()}, 0)",
        f"import os; os.killpg({os.getpgid(0)}, 0)",
        # As the owner of a pipe that is told of news by a signal of choice.
        f"import fcntl; fcntl.fcntl(1, 8, {os.getpid()})",
    ):
        assert run_python(code).reason.startswith("PermissionError"), code


def test_nothing_is_written_anywhere(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    existing = tmp_path / "existing.txt"
    existing.write_text("as it was")
    new = Path.home() / ".depthcut-sandbox-test"
    for code in (
        f"open({str(existing)!r}, 'a').write('x')",
        f"open({str(existing)!r}, 'r+').write('x')",
        f"import os; os.open({str(existing)!r}, os.O_RDONLY | os.O_TRUNC)",
        f"import os; os.truncate({str(existing)!r}, 0)",
        f"import os; os.remove({str(existing)!r})",
        f"import os; os.rename({str(existing)!r}, {str(existing) + '2'!r})",
        f"import os; os.chmod({str(existing)!r}, 0)",
        f"import os; os.mkdir({str(new)!r})",
        f"open({str(new)!r}, 'w')",
        f"import os; os.symlink('/', {str(new)!r})",
        "open('here.txt', 'w')",
        "import tempfile; tempfile.TemporaryFile()",
        "open('/proc/self/mem', 'r+b')",
    ):
        outcome = run_python(code)
        assert not outcome.passed, code
        assert "Error" in outcome.reason
    assert existing.read_text() == "as it was"
    assert [each.name for each in tmp_path.iterdir()] == ["existing.txt"]
    assert not os.path.lexists(new)


def test_nothing_of_the_user_is_read(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("secret")
    if not landlock():
        pytest.skip("this kernel has no Landlock")
    for code in (
        f"open({str(secret)!r}).read()",
        f"import os; os.listdir({str(tmp_path)!r})",
        f"open('/proc/{os.getpid()}/environ').read()",
        "open('/proc/self/environ').read()",
        f"open({__file__!r}).read()",
    ):
        assert run_python(code).reason.startswith("PermissionError"), code


def test_a_kernel_without_landlock_stops_all_but_reading(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(sandboxed.__file__).read_text()
    assert "if ruleset < 0:" in source
    without = tmp_path / "sandboxed.py"
    without.write_text(source.replace("if ruleset < 0:", "if True:"))
    monkeypatch.setattr(sandbox, "_CHILD", without)
    assert run_python("open('/proc/self/status').read()").passed
    test_nothing_is_written_anywhere(tmp_path / "other")
    test_no_socket_is_opened()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_pass_what_computing_needs_and_nothing_else(machine: str) -> None:
    table = sandboxed._ALLOWED
    column, architecture = sandboxed._MACHINES[machine]
    allowed = {numbers[column] for numbers in table.values()}
    special = {"open": 2, "openat": 257, "ioctl": 16, "fcntl": 72}
    if machine == "aarch64":
        special = {"openat": 56, "ioctl": 29, "fcntl": 25}

    def says(number: int, *arguments: int, under: int = architecture) -> int:
        return run_filter(sandboxed.filter_program(machine), number, under, arguments)

    allow, refuse = 0x7FFF0000, 0x00050001
    for number in range(600):
        if number not in special.values():
            assert says(number) == (allow if number in allowed else refuse), number
            assert says(number | 0x40000000) == refuse
    assert says(0, under=0x40000003) == 0x80000000  # i386: the process is ended
    for name, at in (("open", 1), ("openat", 2)):
        if name in special:
            before = (0,) * at
            for flags, answer in (
                (os.O_RDONLY | os.O_CLOEXEC, allow),
                (os.O_WRONLY, refuse),
                (os.O_RDWR, refuse),
                (os.O_RDONLY | os.O_CREAT, refuse),
                (os.O_RDONLY | os.O_TRUNC, refuse),
            ):
                assert says(special[name], *before, flags) == answer
    assert says(special["fcntl"], 0, 1030) == says(special["ioctl"], 0, 0x5401) == allow
    assert says(special["fcntl"], 0, 8) == says(special["ioctl"], 0, 0x5412) == refuse


def run_filter(program: bytes, number: int, architecture: int, arguments: tuple[int, ...]) -> int:
    """What a filter answers, by the rules of classic BPF that it uses."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *(0,) * (6 - len(arguments)))
    lines = list(struct.iter_unpack("HBBI", program))
    at, value = 0, 0
    while True:
        code, then, otherwise, constant = lines[at]
        if code == 0x06:
            return int(constant)
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        else:
            holds = value == constant if code == 0x15 else bool(value & constant)
            at += then if holds else otherwise
        at += 1


def landlock() -> bool:
    """Whether the kernel has it, as the sandbox itself would find."""
    return not run_python("open('/proc/self/status')").passed


def test_no_environment_no_arguments_and_an_empty_folder_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = """
import os, sys
assert not set(os.environ) - {"LC_CTYPE"}, os.environ
assert len(sys.argv) == 1
assert os.listdir() == []
assert sys.stdin.read() == ""
"""
    assert run_python(code) == Outcome(True, "")


def test_its_folder_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    run_python("pass")
    run_python("while True: pass", seconds=0.2)
    assert list(tmp_path.iterdir()) == []


def test_no_socket_is_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        port = listener.getsockname()[1]
        for code in (
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}')",
            "import socket; socket.socketpair()",
            "import socket; socket.socket(socket.AF_UNIX)",
        ):
            outcome = run_python(code)
            assert not outcome.passed
            assert "not permitted" in outcome.reason
        with pytest.raises(TimeoutError):
            listener.accept()


def test_what_answers_usually_import_works() -> None:
    modules = (
        "array bisect calendar cmath collections copy csv datetime decimal enum fractions "
        "functools hashlib heapq io itertools json math operator os queue random re statistics "
        "string struct sys time typing unicodedata zlib"
    )
    code = f"""
import {", ".join(modules.split())}
assert datetime.datetime.now().astimezone().tzinfo
assert 0 <= random.random() < 1
assert hashlib.sha256(b"").hexdigest().startswith("e3b0c442")
from dataclasses import dataclass
@dataclass
class Point:
    x: int
assert Point(3).x == 3
"""
    assert run_python(code) == Outcome(True, "")


def test_a_long_program_passes_too() -> None:
    assert run_python("x = 1\n" * 50_000 + "assert x == 1") == Outcome(True, "")


def test_a_system_that_cannot_confine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match="only under Linux"):
        run_python("pass")


def test_a_process_that_cannot_confine_itself_runs_no_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = Path(sandboxed.__file__).read_text()
    broken = tmp_path / "sandboxed.py"
    for before, after in (
        ("_PR_SET_NO_NEW_PRIVS = 1, 22, 38", "_PR_SET_NO_NEW_PRIVS = 1, 9999, 38"),
        ("_MACHINES: dict", "_MACHINES, _REST = {}, 1\n_OTHER: dict"),
    ):
        assert before in source
        broken.write_text(source.replace(before, after))
        monkeypatch.setattr(sandbox, "_CHILD", broken)
        with pytest.raises(SettingsError, match="cannot be confined on this system"):
            run_python("pass")


def test_a_sandbox_that_works_is_not_refused() -> None:
    require_sandbox()


def test_limits_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(SettingsError, match="must be above 0"):
        run_python("pass", seconds=0)
    assert not run_python("import json", memory_bytes=2**20).passed
