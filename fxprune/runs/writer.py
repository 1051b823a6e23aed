"""One writer at a time: the lock of a run's folder.

The lock is one of the operating system, so it dies with its process, however that ends. Who holds
it stands in the file, for the message of whoever comes second.
"""

import contextlib
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from fxprune.errors import FxpruneWarning, RunError
from fxprune.files import CHECK, lock, read_bytes, sweep
from fxprune.formats import parsed
from fxprune.runs.trust import shown

LOCK = ".writer"
MOST = 4096  # bytes of the file


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder; what killed writers left in it is removed.

    Args:
        folder: it is made if it is missing.

    Raises:
        RunError: another process, or this one, holds the lock; or the folder is not writable.

    Warns:
        FxpruneWarning: the file system has no locks.
    """
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _lock(path)
    except OSError as error:
        raise RunError(f"cannot write to {folder}", why=str(error), do=CHECK) from error
    try:
        sweep(folder)
        yield
    finally:
        if _is_still(path, handle):  # the folder may have been moved, and another be there now
            path.unlink(missing_ok=True)  # before the lock goes with the handle
        os.close(handle)


def require_lock(folder: Path) -> None:
    """Refuse to go on writing where the lock of this process no longer is.

    Raises:
        RunError: the folder was moved or deleted while this process held its lock.
    """
    try:
        holder = parsed(read_bytes(folder / LOCK, MOST), folder / LOCK)
        own = json.loads(_self())
        if (holder["pid"], holder["host"]) == (own["pid"], own["host"]):
            return
    except (RunError, KeyError, TypeError):
        pass
    raise RunError(
        f"{folder} is not the folder any more in which this began",
        why="it was moved or deleted meanwhile; nothing is written to what is there now",
        do="call the command again with the new place: it goes on from the last checkpoint",
    )


def _lock(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            if not _taken(handle, path.parent):
                raise RunError(
                    f"another process writes to {path.parent}",
                    why=_holder(handle),
                    do="wait until it ends, or end it; the lock goes with it",
                )
            if _is_still(path, handle):  # its last holder may have removed it meanwhile
                os.ftruncate(handle, 0)
                os.write(handle, _self().encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _taken(handle: int, folder: Path) -> bool:
    try:
        return lock(handle)
    except OSError as error:
        last = f"; the last one that began and did not end: {_holder(handle)}"
        warnings.warn(
            f"the file system of {folder} has no locks ({error.strerror}): nothing keeps another "
            f"process from writing to this run{last if os.fstat(handle).st_size else ''}",
            FxpruneWarning,
            stacklevel=5,
        )
        return True


def _is_still(path: Path, handle: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(handle).st_ino
    return False


def _self() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})


def _holder(handle: int) -> str:
    with contextlib.suppress(OSError, RunError, KeyError, TypeError):
        holder = parsed(os.pread(handle, MOST, 0), Path(LOCK))
        return shown(f"process {holder['pid']} on {holder['host']}, since {holder['since']}")
    return "it did not say which"
