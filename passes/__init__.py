"""The compiler's passes; one file a pass, found by `registry.collect`."""

import functools
from collections.abc import Hashable, Mapping
from typing import Any

from fxprune import registry
from fxprune.passes.base import Pass, Program

__all__ = ["Pass", "Program", "apply", "known"]


@functools.cache
def known() -> Mapping[Hashable, type[Pass]]:
    """All passes by name."""
    return registry.collect("fxprune.passes", Pass)  # type: ignore[type-abstract]


def apply(name: str, program: Program, **options: Any) -> Program:
    """Runs one pass, built from its options, on a program."""
    return known()[name](**options)(program)
