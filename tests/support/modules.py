"""The modules of the package, by their names below fxprune."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules() -> dict[str, Path]:
    """Every module of the package by its name below fxprune; `""` is fxprune itself."""
    package = ROOT / "fxprune"
    files = {path.relative_to(package): path for path in package.rglob("*.py")}
    files |= {
        Path("passes") / path.relative_to(ROOT / "passes"): path
        for path in (ROOT / "passes").rglob("*.py")
    }
    return {_dotted(relative): path for relative, path in sorted(files.items())}


def _dotted(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = modules()
