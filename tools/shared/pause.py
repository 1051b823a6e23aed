"""Who measures times asks others to be quiet: a file for each, in one folder of the machine.

A timing tool works `with quiet():`; a queue that trains in the background calls `wait()` before
each step, and stands still while there is a file of a process that lives, or any other file:

    touch "$TMPDIR/fxprune-pause/me"      # pauses every queue of this machine until it is removed
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(tempfile.gettempdir()) / "fxprune-pause"


@contextlib.contextmanager
def quiet(folder: Path = FOLDER, settle_seconds: float = 1.0) -> Iterator[None]:
    """Pause the queues of this machine; sleeps as long as a step of theirs may take."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / str(os.getpid())
    file.touch()
    try:
        time.sleep(settle_seconds)
        yield
    finally:
        file.unlink(missing_ok=True)


def paused(folder: Path = FOLDER) -> bool:
    """Tell whether somebody asks for quiet. Files of processes that are gone are removed."""
    if not folder.is_dir():
        return False
    for file in folder.iterdir():
        if not file.name.isdecimal() or Path(f"/proc/{file.name}").exists():
            return True
        file.unlink(missing_ok=True)
    return False


def wait(folder: Path = FOLDER) -> float:
    """Sleep while somebody asks for quiet. Returns the seconds that it took."""
    began = time.monotonic()
    while paused(folder):
        time.sleep(1.0)
    return time.monotonic() - began
