"""Trust: which runs may import and execute what they name.

A run directory names code: the SPEC of its model, and perhaps a data factory or a loss. A run of a
stranger names code of the stranger's choice. So, as direnv does it, what the user wrote on a
command line is recorded in the user's own state folder, by a hash of the run's path, the kind of
the name, the name and the folder that it starts from. Any other name is refused before anything
is imported, until the user says `--trust`.

Whoever adds a kind of name calls `Run.record` where the user gives it, and `Run.require` before a
stored one is imported. See docs/reliability/security.md.
"""

import contextlib
import hashlib
import json
import re
from pathlib import Path

import platformdirs

from fxprune.errors import RunError

REGISTRIES = ("torchvision", "timm")
"""Whose names are looked up in a registry: they execute the library's code only."""

_PLAIN = r"\s*[A-Za-z_]\w*\s*=\s*(-?[\d.]+(e-?\d+)?|True|False|None)\s*"
_REGISTERED = re.compile(
    rf"\s*({'|'.join(REGISTRIES)}):[\w.-]+\s*(\{{({_PLAIN}(,{_PLAIN})*)?,?\}})?\s*"
)
"""Numbers and truth values: a text may be the path of a checkpoint, which timm would unpickle."""


def record(run: Path, kind: str, name: str, base: Path) -> None:
    """Remember that the user gave this name to this run; what cannot be written is asked again."""
    mark = _mark(run, kind, name, base)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark.write_text(f"{shown(str(run.resolve()))}\n{kind} {shown(name)}\n")


def require(run: Path, kind: str, name: str, base: Path) -> None:
    """Refuse a name that a run stores, unless the user gave it or trusts the run.

    Args:
        run: the run's folder.
        kind: what the name is for, such as "spec" or "data".
        name: what would be imported, such as `model.py:build_model`.
        base: the folder that a file in the name starts from.

    Raises:
        RunError: the name was not recorded, and is of no registry.
    """
    if _REGISTERED.fullmatch(name) or _mark(run, kind, name, base).is_file():
        return
    raise RunError(
        f"{run} was not made here, and would execute code",
        why=f"its {kind} {shown(name)} would be imported from {shown(str(base))} and called",
        do="read that code; if you trust it, give --trust (in Python trust=True), which is then "
        "remembered for this folder",
    )


def shown(text: str) -> str:
    """Show a text of a stranger on one short line, without control characters."""
    plain = text.encode("unicode_escape", "backslashreplace").decode()
    return plain if len(plain) <= 200 else f"{plain[:200]}…"


def _mark(run: Path, kind: str, name: str, base: Path) -> Path:
    told = json.dumps([str(run.resolve()), kind, name, str(base.resolve())])
    folder = platformdirs.user_state_path("fxprune", appauthor=False) / "trust"
    return folder / hashlib.sha256(told.encode("utf-8", "backslashreplace")).hexdigest()
