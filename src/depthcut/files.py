"""Files and folders that appear whole or not at all.

Work happens in a hidden sibling (`.NAME.partial-XXXXXX`), is synced, then renamed. A sibling
is locked while its writer lives, so what a kill -9 left behind is known and removed by the
next writer of the same name.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from depthcut.errors import OutputError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EIO),
)


@contextlib.contextmanager
def new_folder(path: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """A context that gives an empty working folder and, on success, renames it to `path`.

    On any exception the working folder is removed and `path` does not exist.

    Args:
        path: The folder to be; its parents are made.
        needed_bytes: Checked against the free space of the disk before anything is written.

    Raises:
        OutputError: `path` exists, its parent cannot be written, or the disk is full.
    """
    with _working_folder(path, needed_bytes) as working:
        yield working
        sync_tree(working)
        refuse_existing(path)
        working.rename(path)
        _sync(path.parent)


@contextlib.contextmanager
def new_file(path: Path, *, needed_bytes: int = 0) -> Iterator[Path]:
    """A context that gives the place for a large file and, on success, renames it to `path`.

    The file's folder there is a working folder: what else is put into it goes with it. On any
    exception nothing is left and `path` does not exist.

    Args:
        path: The file to be; its parents are made.
        needed_bytes: Checked against the free space of the disk before anything is written.

    Raises:
        OutputError: `path` exists, its parent cannot be written, or the disk is full.
    """
    with _working_folder(path, needed_bytes) as working:
        file = working / "file"
        yield file
        _sync(file)
        refuse_existing(path)
        file.rename(path)
        _sync(path.parent)
        shutil.rmtree(working)


@contextlib.contextmanager
def _working_folder(path: Path, needed_bytes: int) -> Iterator[Path]:
    """A hidden, locked sibling of `path`, removed on any exception."""
    refuse_existing(path)
    with _explained(path, needed_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        if needed_bytes > (free := shutil.disk_usage(path.parent).free):
            raise OutputError(_no_space(path, needed_bytes, free))
        working = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        lock = os.open(working, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            working.chmod(0o755)
            yield working
        except BaseException:
            shutil.rmtree(working, ignore_errors=True)
            raise
        finally:
            os.close(lock)


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """A context in which no other process has this context of the same folder, which is made.

    Raises:
        OutputError: Another has it, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}; choose another --out"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise OutputError(f"another depthcut run is writing to {folder}: wait for it") from error
    finally:
        os.close(handle)


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: The file exists and `overwrite` is off, or the place cannot be written.
    """
    if not overwrite:
        refuse_existing(path)
    with _explained(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        handle, name = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
                Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync(path.parent)


def discard(path: Path) -> None:
    """Remove a file or folder; at no moment does a half of it stand at `path`."""
    if path.is_dir() and not path.is_symlink():
        doomed = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink()


def refuse_existing(path: Path) -> None:
    """Raise OutputError if there is anything at `path`, or if no record can name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise OutputError(f"{str(path)!r} is not UTF-8: choose another --out") from error
    if os.path.lexists(path):
        raise OutputError(f"{path} exists already: choose another --out, or remove it first")


def refuse_unwritable(path: Path) -> None:
    """Raise OutputError if a new file cannot be made at `path`; nothing is left there.

    Of parents that are yet to be made, the nearest one that is there is tried.
    """
    parent = path.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    with _explained(path, 0):
        tempfile.TemporaryFile(dir=parent).close()


def _prefix(path: Path) -> str:
    return f".{path.name}.partial-"


def remove_abandoned(path: Path) -> None:
    """Remove what killed processes left of a file or folder that was to be `path`, or no more."""
    for sibling in path.parent.iterdir():
        if not sibling.name.startswith(_prefix(path)):
            continue
        with contextlib.suppress(OSError):
            handle = os.open(sibling, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: its writer lives
                if sibling.is_dir():
                    shutil.rmtree(sibling)
                else:
                    sibling.unlink()
            finally:
                os.close(handle)


@contextlib.contextmanager
def _explained(path: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if error.errno in _FULL:
            free = shutil.disk_usage(path.parent).free
            raise OutputError(_no_space(path, needed_bytes, free)) from error
        if error.errno in _REFUSED:
            reason = f"cannot write {path}: {error.strerror}; choose another --out"
            raise OutputError(reason) from error
        raise


def _no_space(path: Path, needed_bytes: int, free_bytes: int) -> str:
    need = f"{needed_bytes:,} bytes are needed and " if needed_bytes else ""
    return (
        f"no space left on the disk for {path}: {need}{free_bytes:,} are free; "
        "nothing was kept, make room or choose another --out"
    )


def sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
