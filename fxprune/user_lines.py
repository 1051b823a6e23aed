"""Finds the user's own line for messages: of a graph node, and of an error."""

import contextlib
import functools
import itertools
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from torch import fx


def where(node: fx.Node) -> str:
    """Find the user's line that made a node, as `file:line   code`; empty if fx has none."""
    frames = list(_frames(node.stack_trace or ""))
    own = [frame for frame in frames if "/torch/" not in frame[0] and "/fxprune/" not in frame[0]]
    for path, line, code in reversed(own or frames):
        return f"{path}:{line}   {code}"
    return ""


def _frames(trace: str) -> Iterator[tuple[str, str, str]]:
    lines = trace.splitlines()
    for head, code in itertools.pairwise(lines):
        if head.lstrip().startswith("File "):
            path, line = head.split('"')[1], head.split("line ")[1].split(",")[0]
            yield path, line, code.strip()


def user_line(error: BaseException) -> str:
    """Name the innermost line of the user's own code that `error` went through.

    Code of the standard library, of installed packages and of fxprune is not the user's; if there
    is nothing else, the innermost line of all is taken. Empty where there is no traceback.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return _line(error.filename, error.lineno, error.text)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    for frame in (own or list(frames))[-1:]:
        return _line(frame.filename, frame.lineno, frame.line)
    return ""


def _line(filename: str, number: int | None, text: str | None) -> str:
    path = Path(filename)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{number}   {(text or '').strip()}".rstrip()


def _is_foreign(filename: str) -> bool:
    return filename.startswith("<") or any(map(filename.startswith, _foreign_folders()))


@functools.cache
def _foreign_folders() -> tuple[str, ...]:
    here = Path(__file__).parent
    paths = sysconfig.get_paths()
    names = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return (*names, str(here), str(here.parent / "passes"))
