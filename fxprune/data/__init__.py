"""Data sets for the built-in trainer."""

from fxprune.data.load import FOLDER, NAMES, DataSet, from_tensors, load
from fxprune.data.splits import WHOLE, Batch, FolderSplit, Share, Split, TensorSplit

__all__ = [
    "FOLDER",
    "NAMES",
    "WHOLE",
    "Batch",
    "DataSet",
    "FolderSplit",
    "Share",
    "Split",
    "TensorSplit",
    "from_tensors",
    "load",
]
