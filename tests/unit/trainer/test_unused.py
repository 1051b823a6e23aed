"""Options that a training is given and does not use are named."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fxprune.data import DataSet, Preprocess, load, own_data
from fxprune.trainer.job import Job
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.unused import unused

EXAMPLES = TensorDataset(torch.zeros(8, 1, 8, 8), torch.zeros(8, dtype=torch.int64))


def data_of(name: str) -> DataSet:
    if name == "digits":
        return load(name)
    loaders = (DataLoader(EXAMPLES, 4),) * 2
    return own_data(loaders if name == "d.py:loaders" else (EXAMPLES, EXAMPLES), name)


@pytest.mark.parametrize(
    ("name", "job", "expected"),
    [
        ("d.py:sets", {"preprocess": Preprocess(mean=(0.5,))}, "mean"),
        ("d.py:sets", {"preprocess": Preprocess(resize=(9,))}, "resize"),
        ("d.py:sets", {"preprocess": Preprocess(crop="center")}, "crop"),
        ("d.py:sets", {"preprocess": Preprocess(flip=True)}, "flip"),
        ("d.py:sets", {"transform": "t.py:transform"}, "transform"),
        ("d.py:sets", {"val_split": 0.2}, "val-split"),
        ("d.py:sets", {"options": TrainOptions(augment=False)}, "augment"),
        ("d.py:sets", {"loss": "l.py:f", "options": TrainOptions(label_smoothing=0.1)}, "label-"),
        ("d.py:loaders", {"options": TrainOptions(batch_size=32)}, "batch-size"),
        ("d.py:loaders", {"workers": 2}, "workers"),
        ("digits", {"workers": 2}, "workers"),
        ("digits", {"val_split": 0.2}, "val-split"),
        ("digits", {"options": TrainOptions(temperature=3.0)}, "temperature"),
        ("digits", {"options": TrainOptions(optimizer="AdamW", momentum=0.3)}, "momentum"),
        (
            "digits",
            {"preprocess": Preprocess(flip=True), "options": TrainOptions(augment=False)},
            "flip",
        ),
    ],
    ids=str,
)
def test_an_option_that_is_not_used_is_named(name: str, job: dict[str, Any], expected: str) -> None:
    workers = job.pop("workers", None)
    made = Job(name, Path(), **{"options": TrainOptions(), **job})
    assert any(line.startswith(f"--{expected}") for line in unused(made, data_of(name), workers))


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("d.py:sets", {"workers": 2}),
        ("d.py:sets", {"options": TrainOptions(batch_size=4)}),
        ("digits", {"preprocess": Preprocess(mean=(0.5,), flip=True)}),
        ("digits", {"options": TrainOptions(distil=0.5, temperature=3.0, momentum=0.3)}),
        ("digits", {"options": TrainOptions(optimizer="rmsprop", momentum=0.3)}),
        ("digits", {"options": TrainOptions(optimizer="timm:lamb", momentum=0.3)}),
        ("folder:images", {"val_split": 0.2}),
    ],
    ids=str,
)
def test_options_that_are_used_are_not(name: str, job: dict[str, Any]) -> None:
    workers = job.pop("workers", None)
    made = Job(name, Path(), **{"options": TrainOptions(), **job})
    assert unused(made, data_of("digits" if name.startswith("folder") else name), workers) == []
