"""Trust: which runs may import and execute what they name.

A run directory names code: the SPEC of its model, and perhaps a data factory or a loss. A run of a
stranger names code of the stranger's choice. So, as direnv does it, what the user wrote on a
command line is recorded in the user's own state folder, by a hash of the run's path, the kind of
the name, the name and the folder that it starts from. Any other name is refused before anything
is imported, until the user says `--trust`. What is trusted so is the code as it stands: the named
file's content is recorded too, and asked for again once it is another one.

Whoever adds a kind of name calls `Run.record` where the user gives it, and `Run.require` before a
stored one is imported. See docs/reliability/security.md.
"""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path

import platformdirs

from fxprune.errors import RunError
from fxprune.files import write_bytes
from fxprune.runs.sources import digest

REGISTRIES = ("torchvision", "timm")
"""Whose names are looked up in a registry: they execute the library's code only."""

_CONTENT = "content "
"""What the line of a mark begins with that holds the digest of the named file."""

_PLAIN = (
    r"\s*(?!\w*(weights|pretrained|checkpoint))"
    r"[A-Za-z_]\w*\s*=\s*(-?[\d.]+(e-?\d+)?|True|False|None)\s*"
)
_REGISTERED = re.compile(
    rf"\s*({'|'.join(REGISTRIES)}):[\w.-]+(?<!\.py)\s*(\{{({_PLAIN}(,{_PLAIN})*)?,?\}})?\s*"
)
"""Numbers and truth values: a text may be the path of a checkpoint, which timm would unpickle."""


def record(run: Path, kind: str, name: str, base: Path, *, content: bool = False) -> None:
    """Remember that the user gave this name to this run; what cannot be written is asked again.

    Args:
        run: the run's folder.
        kind: what the name is for, such as "spec" or "data".
        name: what would be imported.
        base: the folder that a file in the name starts from.
        content: remember what the named file holds as well, and ask again when it changes.
    """
    mark = _mark(run, kind, name, base)
    lines = _lines(run, kind, name)
    lines += [f"{_CONTENT}{digest(name, base)}"] if content else []
    with contextlib.suppress(OSError, RunError):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_bytes(mark, ("\n".join(lines) + "\n").encode())


def require(run: Path, kind: str, name: str, base: Path) -> None:
    """Refuse a name that a run stores, unless the user gave it or trusts the run.

    Args:
        run: the run's folder.
        kind: what the name is for, such as "spec" or "data".
        name: what would be imported, such as `model.py:build_model`.
        base: the folder that a file in the name starts from.

    Raises:
        RunError: the name was not recorded, or with other content, and is of no registry; or it is
            of one, and the run would write to files elsewhere.
    """
    content = recorded(run, kind, name, base)
    known = content is not None
    if known and content in ("", digest(name, base)):
        return
    if kind == "spec" and _REGISTERED.fullmatch(name):
        _refuse_links(run)
        return
    raise RunError(
        f"{run} {'has other code than what you trusted' if known else 'was not made here'},"
        " and would execute code",
        why=f"its {kind} {shown(name)} would be imported from {shown(str(base))} and called",
        do="read that code; if you trust it, give --trust (in Python trust=True), which is then "
        "remembered for this folder",
    )


def inherit(run: Path, new: Path, kind: str, name: str, base: Path) -> None:
    """Let another run of the user's import what this one may, as long as it is the same code."""
    content = recorded(run, kind, name, base)
    if content is not None:
        record(new, kind, name, base, content=bool(content))


def recorded(run: Path, kind: str, name: str, base: Path) -> str | None:
    """Return the digest that a name was recorded with; "" without one, None if it was not."""
    mark = _mark(run, kind, name, base)
    text = mark.read_text("utf-8", "replace") if mark.is_file() else ""
    if text.splitlines()[:2] != _lines(run, kind, name):  # else it is damaged
        return None
    return "".join(text.splitlines()[2:]).removeprefix(_CONTENT)


def _refuse_links(run: Path) -> None:
    """Refuse links out of a run that was not made here: what is written to it would go there."""
    inside = run.resolve()
    for folder, folders, files in os.walk(inside):
        for path in (Path(folder, entry) for entry in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise RunError(
                    f"{run} was not made here, and would write to files outside of it",
                    why=f"{shown(path.name)} is a link to {shown(str(path.resolve()))}",
                    do="remove the link, or give --trust (in Python trust=True) if it is yours",
                )


def shown(text: str) -> str:
    """Show a text of a stranger on one short line, without control characters."""
    plain = text.encode("unicode_escape", "backslashreplace").decode()
    return plain if len(plain) <= 200 else f"{plain[:200]}…"


def _lines(run: Path, kind: str, name: str) -> list[str]:
    return [shown(str(run.resolve())), f"{kind} {shown(name)}"]


def _mark(run: Path, kind: str, name: str, base: Path) -> Path:
    text = json.dumps([str(run.resolve()), kind, name, str(base.resolve())])
    folder = platformdirs.user_state_path("fxprune", appauthor=False) / "trust"
    return folder / hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
