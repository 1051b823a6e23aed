"""The user's own line for messages: of a graph node, and of an error."""

import contextlib
import functools
import itertools
import sysconfig
import traceback
from pathlib import Path

from torch import fx


def where(node: fx.Node) -> str:
    """Find the user's line that made a node, as `file:line   code`; empty if none is known.

    Tracing notes this one line as the node's stack trace.
    """
    lines = (node.stack_trace or "").splitlines()
    for head, code in reversed(list(itertools.pairwise(lines))):
        if head.lstrip().startswith("File "):
            path, line = head.split('"')[1], head.split("line ")[1].split(",")[0]
            return f"{path}:{line}   {code.strip()}"
    return ""


def shorten(where: str) -> str:
    """Shorten a line that `where` found by the folders that are the same for all."""
    return where.replace(f"{Path.cwd()}/", "").rpartition("site-packages/")[2]


def user_line(error: BaseException) -> str:
    """Name the innermost line of the user's own code that `error` went through.

    Code of the standard library, of installed packages and of fxprune is not the user's; if there
    is nothing else, the innermost line of a library is taken. Empty where there is none.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return _line(error.filename, error.lineno, error.text)
    frames = traceback.extract_tb(error.__traceback__)
    last = [f for f in frames if not f.filename.startswith(("<", *_own_folders()))][-1:]
    return own_line(error) or "".join(_line(f.filename, f.lineno, f.line) for f in last)


def own_line(error: BaseException) -> str:
    """Name the innermost line of the user's own code, or nothing, where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_foreign(frame.filename)]
    return "".join(_line(frame.filename, frame.lineno, frame.line) for frame in own[-1:])


def _line(filename: str, number: int | None, text: str | None) -> str:
    path = Path(filename)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return f"{path}:{number}   {(text or '').strip()}".rstrip()


def _is_foreign(filename: str) -> bool:
    return filename.startswith(("<", *_foreign_folders()))


@functools.cache
def _foreign_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    names = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    return *_own_folders(), *(f"{name}/" for name in names)


def _own_folders() -> tuple[str, ...]:
    here = Path(__file__).parent
    return f"{here}/", f"{here.parent / 'passes'}/"
