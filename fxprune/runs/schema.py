"""The schema that every dataclass on disk has. It imports neither torch nor pydantic.

The options of a training are such a dataclass, and `fxprune train --help` reads them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ConfigDict

STRICT: "ConfigDict" = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""Exact types, no other fields, finite numbers; see `fxprune.files.fitting`."""
