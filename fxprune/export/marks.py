"""What every exported file says of itself, and by which an export knows its own files again."""

from importlib.metadata import version
from pathlib import Path

MARK = "fxprune.max_rel_error"
"""A key that stands in every exported file, of any format."""


def marks(max_rel_error: float) -> dict[str, str]:
    """Return what a file says that has no other place for it: fxprune's version and the check."""
    return {"fxprune.version": version("fxprune"), MARK: str(max_rel_error)}


def is_exported(path: Path) -> bool:
    """Tell whether an export wrote a file."""
    return path.is_file() and MARK.encode() in path.read_bytes()
