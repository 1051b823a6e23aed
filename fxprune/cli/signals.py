"""Signals: Ctrl-C, a cluster's SIGTERM, a closed terminal end a command with one line and code."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
    WORDS[signal.SIGHUP] = "hung up"
POSIX = hasattr(signal, "setitimer")
AGAIN = 15.0
"""Seconds after which a signal is raised again, in case that code of others has swallowed it."""


class Ended(BaseException):
    """A signal that ends the command; not an Exception, which code of others catches."""

    def __init__(self, number: int, said: str = "") -> None:
        super().__init__(number)
        self.number = number
        self.said = said or WORDS[signal.Signals(number)]


class _State:
    """What the handler knows: the process that it is for, and the first signal that came."""

    process = 0
    waits = False
    number = 0


def _handle(number: int, _: FrameType | None) -> None:
    if os.getpid() != _State.process:  # forked from it
        os._exit(128 + number)
    if number not in WORDS:  # the alarm
        number = _State.number
    first, _State.number = not _State.number, number
    if _State.waits and first:
        return
    if POSIX:
        signal.setitimer(signal.ITIMER_REAL, AGAIN)
    raise Ended(number)


@contextlib.contextmanager
def held() -> Iterator[Callable[[], bool]]:
    """Let the first signal wait; what is yielded tells whether there was one.

    A second one is not held back. At the end of the block one that waited is raised, and before if
    the block fails: of the processes that it needs the signal may have ended one.
    """
    _State.waits = True
    try:
        yield lambda: bool(_State.number)
    except RuntimeError as error:
        if _State.number:
            raise Ended(_State.number) from error
        raise
    finally:
        _State.waits = False
    if _State.number:
        raise Ended(_State.number)


def ended(said: str) -> Ended:
    """Return the signal that waits, as an exception that says more."""
    return Ended(_State.number or signal.SIGINT, said)


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """End the process with one line and the signal's exit code when one of WORDS comes.

    The exit code is 128 and the signal's number, as a shell has it: 130, 143 or 129. Of several
    processes of torchrun the first speaks.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.process, _State.number = os.getpid(), 0
    numbers = [*WORDS, signal.SIGALRM] if POSIX else [*WORDS]
    before = {number: signal.signal(number, _handle) for number in numbers}
    try:
        yield
    except BaseException as error:
        signalled = _signal_behind(error)
        if signalled is None:
            raise
        _leave(signalled)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """Ignore the signals from now on; for a process that has nothing left to do."""
    if threading.current_thread() is threading.main_thread():
        for number in WORDS:
            signal.signal(number, signal.SIG_IGN)


def _signal_behind(error: BaseException | None) -> Ended | None:
    """Find the signal that an error was made of: Python does so in `__set_name__`, others too."""
    while error is not None:
        if isinstance(error, Ended):
            return error
        if isinstance(error, KeyboardInterrupt):
            return Ended(signal.SIGINT)
        error = error.__cause__ or error.__context__
    return None


def _leave(ended: Ended) -> NoReturn:
    """End the process at once: half-imported libraries cannot be trusted to end it well."""
    for number in WORDS:
        signal.signal(number, signal.SIG_IGN)
    if os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{ended.said}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(128 + ended.number)
