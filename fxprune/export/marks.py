"""The mark in every exported file: by it an export tells its own files from the user's."""

import mmap
from importlib.metadata import version
from pathlib import Path

MARK = "fxprune.max_rel_error"
"""A key that stands in every exported file, of any format."""


def marks(max_rel_error: float) -> dict[str, str]:
    """Return the entries of a file's metadata: fxprune's version and the result of the check."""
    return {"fxprune.version": version("fxprune"), MARK: str(max_rel_error)}


def is_exported(path: Path) -> bool:
    """Tell whether an export wrote a file."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(MARK.encode()) >= 0  # of any size: nothing of it is kept in memory
