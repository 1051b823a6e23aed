"""The compiler's passes; one file a pass, found by `registry.collect`."""

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune import registry
from fxprune.errors import OptionError, PassError
from fxprune.passes.base import Pass, Program, assert_same_function
from fxprune.user_lines import user_line

__all__ = ["Pass", "Program", "apply", "assert_same_function", "known", "parse", "run_passes"]


@functools.cache
def known() -> Mapping[Hashable, type[Pass]]:
    """Map all passes by name."""
    return registry.collect("fxprune.passes", Pass)  # type: ignore[type-abstract]


def parse(text: str | Pass) -> Pass:
    """Build a pass from `name` or `package.module:Class`, either with `{option=value,…}`.

    The second form imports the module, with the current folder on the path as Python itself has
    it for a script; a `Pass` is taken as it is.

    Raises:
        OptionError: there is no such pass, its module raises, or an option is wrong.

    >>> parse("fold")
    Fold()
    """
    if isinstance(text, Pass):
        return text
    given: Any = text  # a caller may have no types
    if not isinstance(given, str) or ":" not in text.partition("{")[0]:
        return registry.from_text(text, known(), "pass")
    name, options = registry.read(text, "pass")
    found = _import(name)
    return registry.build(found, options, f"pass {found.__name__!r}")


def run_passes(passes: str | Sequence[str | Pass], program: Program) -> Program:
    """Run passes one after the other; a single text may name several, with commas between."""
    given: Any = passes  # a caller may have no types
    if not isinstance(given, str | Sequence):
        raise OptionError(
            f"the passes cannot be {given!r}", do="give a list of passes, or a text with commas"
        )
    texts = registry.split(passes) if isinstance(passes, str) else passes
    for stage in [parse(text) for text in texts]:  # all are read before the first one runs
        with registry.running(stage, f"the pass {stage.name}", PassError):
            program = stage(program)
    return program


def _import(target: str) -> type[Pass]:
    """Import the class that `package.module:Class` names."""
    dotted, _, name = target.partition(":")
    if not dotted or not name:
        raise OptionError(
            f"cannot read the pass {target!r}", do="write package.module:Class, or a name"
        )
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        module = importlib.import_module(dotted)
    except Exception as error:
        raise OptionError(
            f"cannot import {dotted} for the pass {target}",
            at="" if isinstance(error, ModuleNotFoundError) else user_line(error),
            why=f"{type(error).__name__}: {error}",
            do="write package.module:Class, as Python would import it from here",
        ) from error
    finally:
        sys.path.remove(here)
    found: Any = getattr(module, name, None)
    if found is None:
        raise OptionError(f"{dotted} has no {name}", do="name a pass that the module defines")
    why = ""
    if not (inspect.isclass(found) and issubclass(found, Pass)):
        why = "it does not derive from fxprune.passes.Pass"
    elif inspect.isabstract(found):
        why = f"it lacks {', '.join(sorted(found.__abstractmethods__))}"
    elif not dataclasses.is_dataclass(found):
        why = "its options are read from the fields of a dataclass"
    if why:
        raise OptionError(
            f"{target} is no pass",
            why=why,
            do="derive it from Pass, with requires, run and ensures, under @dataclass(frozen=True)",
        )
    wanted: type[Pass] = found
    return wanted


def apply(name: str, program: Program, **options: Any) -> Program:
    """Run one pass, built from its options, on a program.

    Raises:
        OptionError: there is no such pass.
    """
    if name not in known():
        raise OptionError(f"unknown pass {name!r}", do=f"known: {', '.join(map(str, known()))}")
    return known()[name](**options)(program)
