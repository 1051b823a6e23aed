"""Sources: the files that a name of code would import, and their text.

A name is `file.py`, `file.py:name` or `pkg.mod:name`, with a folder that it starts from, which goes
before the installed packages. Of that folder text is compiled, never the bytecode beside it; and
what trust has hashed of a file is what is compiled, also if somebody replaces it in between.
"""

import hashlib
import sys
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType

from fxprune.files import read_bytes

_hashed: dict[str, bytes] = {}
"""The content of files between their hash and their import."""


class TextLoader(SourceFileLoader):
    """Compiles what stands in a file; the bytecode in `__pycache__` may be of another text."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the file's code."""
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)

    def get_data(self, path: str) -> bytes:
        """Return the text that was hashed, or else the file's."""
        return _hashed.pop(path, None) or super().get_data(path)


def prefer_text(folder: Path) -> None:
    """Let imports from this folder compile text, from now on."""
    sys.path_importer_cache[str(folder)] = _finder(folder)


def files_of(name: str, base: Path) -> list[Path]:
    """List the files below `base` that a name would import; none of an installed package.

    Args:
        name: perhaps with options in braces.
        base: the folder that it starts from.
    """
    target = name.partition("{")[0].strip()
    head, _, _ = target.rpartition(":")
    for file in (target, head):
        if file.endswith(".py"):
            return [path] if (path := base / file).is_file() else []
    found, folder = [], base
    for part in (head or target).split("."):
        spec = _finder(folder).find_spec(part)
        if spec is None:
            break
        if spec.origin is not None:  # else a folder without __init__.py
            found.append(Path(spec.origin))
        folder /= part
    return found


def digest(name: str, base: Path) -> str:
    """Hash the files that a name would import, and keep their text until they are imported."""
    files = files_of(name, base)
    _hashed.update({str(file): read_bytes(file) for file in files})
    whole = b"".join(hashlib.sha256(_hashed[str(file)]).digest() for file in files)
    return hashlib.sha256(whole).hexdigest() if files else "none"


def _finder(folder: Path) -> FileFinder:
    return FileFinder(
        str(folder),
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (TextLoader, SOURCE_SUFFIXES),
    )
