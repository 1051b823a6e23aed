"""The schema that every dataclass on disk has. It imports neither torch nor pydantic.

The options of a training are such a dataclass, and `fxprune train --help` reads them.
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pydantic import ConfigDict


class Strict:
    """Base of dataclasses whose JSON has exact types, no other fields, and finite numbers.

    See `fxprune.formats.fitting`.
    """

    __pydantic_config__: ClassVar["ConfigDict"] = {
        "strict": True,
        "extra": "forbid",
        "allow_inf_nan": False,
    }
