"""Ctrl-C at any line."""

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


def interrupted(run: Callable[[], object], number: int, counts: Callable[[CodeType], bool]) -> bool:
    """Runs something with a KeyboardInterrupt at one line; tells whether it came so far.

    Args:
        run: what to run.
        number: of the line, from 1, among those of the code that counts.
        counts: which code does.
    """
    left = number

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        del arg
        if not counts(frame.f_code):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    tracing = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(tracing)
    return False
