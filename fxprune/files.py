"""Files: written whole or not at all, and read once.

A file is first written whole under a temporary name, flushed to the disk and then renamed, so
that whoever opens it sees the old one or the new one. It is opened once to be read: regular files
only, no larger than the reader expects.

A temporary file is locked by its writer, and the lock dies with it: what a killed process left is
removed when the next file is written into the same folder.
"""

import contextlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fxprune.errors import RunError, require_kind

POSIX = os.name == "posix"  # elsewhere nothing is locked, and leftovers stay
if POSIX:
    import fcntl

MOST_BYTES = 32 * 2**20
"""The largest file that is read where the reader knows no better, as one of JSON."""

TEMPORARY = ".fxprune-", ".tmp"
"""What the name of a temporary file begins and ends with."""

CHECK = "check that the path exists, its permissions, and the space on the disk"
"""What to do where the operating system refuses a file."""


def damaged(path: Path, why: str, what: str = "it") -> RunError:
    """Build the error for a file whose content, or the part `what` of it, cannot be true."""
    return RunError(
        f"cannot read {path}",
        why=f"{what} is damaged: {why}",
        do="take an earlier copy of it, or make it again",
    )


def as_path(path: str | Path) -> Path:
    """Take the path of a caller who may have no types.

    Raises:
        OptionError: it is neither a text nor a path.
    """
    do = "give the name of a file as a text or a pathlib.Path"
    require_kind(path, str | os.PathLike, "the path", do)
    return Path(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by a file that holds `content`, or leave it as it was.

    A file that is replaced keeps its mode, and a symbolic link stays one to a new file. Only a
    regular file is replaced: a link may lead to a device, which a new name would take away.

    Raises:
        RunError: the folder is missing or not writable, the disk is full, the name is none, or
            something else than a file has it.
    """
    target = path
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise OSError(f"{target} is not a regular file")
        sweep(target.parent)
        handle, temporary = _temporary(target.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.chmod(_mode(target))
                temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except FileNotFoundError as error:
        if path.parent.is_dir():  # of a file system that takes no new files
            raise RunError(f"cannot write {_printable(path)}", why=str(error), do=CHECK) from error
        raise RunError(
            f"cannot write {_printable(path)}",
            why=f"there is no folder {_printable(target.parent)}",
            do="make it, or name another one",
        ) from error
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        raise RunError(f"cannot write {_printable(path)}", why=str(error), do=CHECK) from error


def sweep(folder: Path) -> None:
    """Remove the temporary files of writers that were killed; a folder that is none has none."""
    if not POSIX:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.path for entry in entries if is_temporary(entry.name)]:
            with contextlib.suppress(OSError), _opened(Path(name)) as handle:
                if lock(handle):
                    Path(name).unlink()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder, and remove those that killed processes of this user have left."""
    base, begin = Path(tempfile.gettempdir()), f"{TEMPORARY[0][1:]}scratch-"
    for left in base.glob(f"{begin}*") if POSIX else ():
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_uid == os.getuid() and lock(handle):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(handle)
    while True:
        with tempfile.TemporaryDirectory(prefix=begin, ignore_cleanup_errors=True) as name:
            handle = os.open(name, os.O_RDONLY) if POSIX else -1
            try:
                if not POSIX or _stays(handle, Path(name)):
                    yield Path(name)
                    return
            finally:
                if POSIX:
                    os.close(handle)


def is_temporary(name: str) -> bool:
    """Tell whether a file's name is that of a file that was being written."""
    return name.startswith(TEMPORARY[0]) and name.endswith(TEMPORARY[1])


def lock(handle: int) -> bool:
    """Lock an open file until it is closed; False if another process has it.

    The lock dies with its process. Without POSIX locks the answer is always True.

    Raises:
        OSError: the file system has no locks.
    """
    if not POSIX:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_bytes(
    path: Path, most: int = MOST_BYTES, announced: Callable[[BinaryIO], int] | None = None
) -> bytes:
    """Read a regular file of at most `most` bytes; it is opened once.

    Args:
        path: the file.
        most: bytes that it may have.
        announced: reads the bytes that the file has to have from its beginning, so that a larger
            one takes no memory; a ValueError says why it is damaged.

    Raises:
        RunError: there is no such file, it is too large, or something else than a file.
    """
    try:
        with _opened(path) as handle:
            size = os.fstat(handle).st_size
            if size > most:
                raise damaged(path, f"{size:,} bytes, and at most {most:,} are expected")
            with os.fdopen(os.dup(handle), "rb") as file:
                if announced is not None and (told := _told(announced, file, path)) != size:
                    raise damaged(path, f"{size:,} bytes, and its header announces {told:,}")
                file.seek(0)
                content = file.read(size + 1)
    except FileNotFoundError as error:
        raise RunError(f"there is no file {path}", do="check the name and the folder") from error
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {_printable(path)}", why=str(error), do=CHECK) from error
    except MemoryError as error:
        raise RunError(
            f"cannot read {path}", why=f"its {size:,} bytes do not fit into memory", do=CHECK
        ) from error
    if len(content) != size:
        raise RunError(
            f"cannot read {path}",
            why="it changed while it was read",
            do="wait until its writer is done",
        )
    return content


def _told(announced: Callable[[BinaryIO], int], file: BinaryIO, path: Path) -> int:
    try:
        return announced(file)
    except ValueError as error:
        raise damaged(path, str(error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a regular file to be read; a pipe or a device would make its reader wait."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(f"it is damaged: {path.name} is not a regular file")
        yield handle
    finally:
        os.close(handle)


def _temporary(folder: Path) -> tuple[int, Path]:
    """Open and lock a new file; another process's sweep may remove it before the lock."""
    begin, end = TEMPORARY
    while True:
        path = folder / f"{begin}{secrets.token_hex(8)}{end}"
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        if _stays(handle, path):
            return handle, path
        os.close(handle)


def _stays(handle: int, path: Path) -> bool:
    """Lock what was just made; False if another process's sweep has removed it before."""
    try:
        return lock(handle) and path.exists()
    except OSError:  # a file system without locks, on which nothing is swept
        return True


def _mode(path: Path) -> int:
    """Return the mode of the file that is replaced, or the default one of a new file."""
    with contextlib.suppress(OSError):
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _printable(path: Path) -> str:
    return str(path).replace("\0", "\\0")


def _sync_folder(folder: Path) -> None:
    """Make the renaming itself durable (POSIX; elsewhere a folder cannot be opened)."""
    if not POSIX:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
