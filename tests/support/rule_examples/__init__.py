"""An example or more of every op rule, in a file for each of `fxprune/rules`."""

import importlib
import pkgutil

from tests.support.rule_examples.base import Around, Example, inputs

__all__ = ["EXAMPLES", "Around", "Example", "inputs"]

_FILES = sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name != "base")
EXAMPLES: tuple[Example, ...] = tuple(
    example for name in _FILES for example in importlib.import_module(f"{__name__}.{name}").EXAMPLES
)
