"""The program in the sandbox: it confines itself, reads the code, runs it, says how it went.

Started by sandbox.py as `python -I -S -B sandboxed.py VERDICT_PIPE CPU_SECONDS MEMORY_BYTES`, with
nothing but the standard library. What may be called is a list of what computing needs; the rest
fails with "Operation not permitted": a list of what is forbidden would age with the kernel.
"""

import ctypes
import os
import resource
import struct
import sys

# Name: number on x86_64 and on aarch64; None: it is not there.
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "rseq": (334, 293),
    "faccessat2": (439, 439),
}
# Open only for reading: of the flags (argument 1 or 2) none of O_ACCMODE, O_CREAT, O_TRUNC.
_OPEN = (2, None), 1
_OPENAT = (257, 56), 2
_WRITING = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
# Duplicate, ask and set close-on-exec: not F_SETOWN, which sends signals.
_FCNTL = (72, 25), (0, 1, 2, 3, 1030)
# Ask a terminal for its settings and size, as isatty does; set close-on-exec.
_IOCTL = (16, 29), (0x5401, 0x5413, 0x5450, 0x5451)

_MACHINES: dict[str, tuple[int, int]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column above, and AUDIT_ARCH of the kernel."""

_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_ALL, _LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 0x1FFF, 1 << 2, 1 << 3
_READABLE = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom"),
)


class _Program(ctypes.Structure):
    """struct sock_fprog: a filter and its length in instructions."""

    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def _instruction(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)


def filter_program(machine: str) -> bytes:
    """Instructions of the system call filter, 8 bytes each."""
    column, architecture = _MACHINES[machine]
    program = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture, 1, 0),
        _instruction(_RETURN, _KILL),
        _instruction(_LOAD, _NUMBER),
    ]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            program += [
                _instruction(_JUMP_EQUAL, number, 0, 1),
                _instruction(_RETURN, _ALLOW),
            ]
    for numbers, argument in (_OPEN, _OPENAT):
        if (number := numbers[column]) is not None:
            program += [
                _instruction(_JUMP_EQUAL, number, 0, 4),
                _instruction(_LOAD, _ARGUMENTS + 8 * argument),
                _instruction(_JUMP_ANY_BIT, _WRITING, 0, 1),
                _instruction(_RETURN, _REFUSE),
                _instruction(_RETURN, _ALLOW),
            ]
    for numbers, commands in (_FCNTL, _IOCTL):
        number = numbers[column]
        assert number is not None
        tests = [
            line
            for command in commands
            for line in (
                _instruction(_JUMP_EQUAL, command, 0, 1),
                _instruction(_RETURN, _ALLOW),
            )
        ]
        program += [
            _instruction(_JUMP_EQUAL, number, 0, len(tests) + 2),
            _instruction(_LOAD, _ARGUMENTS + 8),
            *tests,
            _instruction(_RETURN, _REFUSE),
        ]
    program.append(_instruction(_RETURN, _REFUSE))
    return b"".join(program)


def _confine(cpu_seconds: int, memory_bytes: int) -> None:
    """Give up what the code must not have.

    Raises:
        OSError: The system has no way to; what was asked of it is in the message.
    """
    machine = os.uname().machine
    if machine not in _MACHINES:
        raise OSError(f"there is no filter of system calls for {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    _checked(libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "PR_SET_PDEATHSIG")
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _read_only_these(libc, [*_own_folders(), *_READABLE])
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        resource.setrlimit(limit, (value, value))
    instructions = filter_program(machine)
    program = _Program(len(instructions) // 8, instructions)
    _checked(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0), "PR_SET_SECCOMP")


def _own_folders() -> tuple[str, ...]:
    """Where Python's library is, with the shared libraries beside it, and the working folder."""
    return os.path.dirname(os.path.dirname(os.__file__)), os.getcwd()  # noqa: PTH109, PTH120


def _read_only_these(libc: ctypes.CDLL, paths: list[str]) -> None:
    """Landlock: nothing of the file system but reading these; no effect where there is none."""
    handled = struct.pack("Q", _LANDLOCK_ALL)
    ruleset = libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    if ruleset < 0:
        return
    for path in paths:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = _LANDLOCK_READ_FILE | (_LANDLOCK_READ_DIR if os.path.isdir(path) else 0)  # noqa: PTH112
        rule = struct.pack("=Qi", rights, place)
        _checked(libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock rule for {path}")
        os.close(place)
    _checked(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _checked(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _whole(pipe: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := os.read(pipe, size - len(data))):
        data += part
    return data


def main() -> None:
    verdict, cpu_seconds, memory_bytes = (int(each) for each in sys.argv[1:4])
    orders = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        _confine(cpu_seconds, memory_bytes)
    except (OSError, ValueError) as error:
        os.write(verdict, str(error).encode())
        return
    os.write(verdict, b"ready\n")
    code = _whole(orders, int.from_bytes(_whole(orders, 8), "little"))
    # Taken before the code can put others in their place.
    read, write, leave = os.read, os.write, os._exit
    del sys.argv[1:]
    try:
        exec(compile(code, "<generated>", "exec"), {})
    except BaseException as error:  # SystemExit is no pass either
        try:
            said = f"{type(error).__name__}: {error}"[:500].encode(errors="replace")
        except BaseException:
            said = b"an exception that cannot be written"
        write(verdict, said)
    else:
        write(verdict, read(orders, 64))
    leave(0)


if __name__ == "__main__":
    main()
