"""Data sets for the built-in trainer."""

from fxprune.data.load import FOLDER, NAMES, DataSet, Transforms, from_tensors, load
from fxprune.data.own import own_data, own_transforms
from fxprune.data.preprocess import Preprocess
from fxprune.data.splits import WHOLE, Batch, FolderSplit, Share, Split, TensorSplit

__all__ = [
    "FOLDER",
    "NAMES",
    "WHOLE",
    "Batch",
    "DataSet",
    "FolderSplit",
    "Preprocess",
    "Share",
    "Split",
    "TensorSplit",
    "Transforms",
    "from_tensors",
    "load",
    "own_data",
    "own_transforms",
]
