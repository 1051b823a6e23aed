"""A compiler for channel pruning during training.

It traces a CNN, trains it at the narrow network's cost, and emits the compact network as ONNX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxprune.api import analyze, fold, instrument, shrink
    from fxprune.channels.graph import ChannelGraph
    from fxprune.export.attempt import try_export
    from fxprune.export.onnx import export_onnx
    from fxprune.export.reference import reference_of, zeroed
    from fxprune.gated.attach import attach
    from fxprune.gated.followers import follow
    from fxprune.gated.module import GatedModule
    from fxprune.runs.gated_file import load, save
    from fxprune.trainer.prune import Pruned, prune

__version__ = "0.1.0"

__all__ = [
    "ChannelGraph",
    "GatedModule",
    "Pruned",
    "analyze",
    "attach",
    "export_onnx",
    "fold",
    "follow",
    "instrument",
    "load",
    "prune",
    "reference_of",
    "save",
    "shrink",
    "try_export",
    "zeroed",
]

_HOMES = {
    "ChannelGraph": "channels.graph",
    "GatedModule": "gated.module",
    "Pruned": "trainer.prune",
    "analyze": "api",
    "attach": "gated.attach",
    "export_onnx": "export.onnx",
    "fold": "api",
    "follow": "gated.followers",
    "instrument": "api",
    "load": "runs.gated_file",
    "prune": "trainer.prune",
    "reference_of": "export.reference",
    "save": "runs.gated_file",
    "shrink": "api",
    "try_export": "export.attempt",
    "zeroed": "export.reference",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch takes seconds to import (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"fxprune.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
