"""A compiler for channel pruning during training.

It traces a CNN, trains it at the narrow network's cost, and emits the compact network as ONNX.
"""

from fxprune.artifact import load, save
from fxprune.averages import follow
from fxprune.compiler import analyze, fold, instrument, shrink
from fxprune.controller import attach
from fxprune.gated import GatedModule
from fxprune.groups import ChannelGraph
from fxprune.onnx import export_onnx

__version__ = "0.1.0"

__all__ = [
    "ChannelGraph",
    "GatedModule",
    "analyze",
    "attach",
    "export_onnx",
    "fold",
    "follow",
    "instrument",
    "load",
    "save",
    "shrink",
]
