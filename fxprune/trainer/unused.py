"""Options that a training was given and does not use: said, since nothing else shows it."""

import dataclasses
from collections.abc import Iterator

from fxprune.data import FOLDER, DataSet, FolderSplit, Preprocess
from fxprune.data.own import DatasetSplit, LoaderSplit
from fxprune.trainer.job import Job
from fxprune.trainer.optimizer import takes
from fxprune.trainer.options import TrainOptions

IMAGES = tuple(field.name for field in dataclasses.fields(Preprocess))
"""The options of `Preprocess`."""


def unused(job: Job, data: DataSet, workers: int | None = None) -> list[str]:
    """List the options that a training does not use, each with the reason, on a line.

    Args:
        job: the training; its options that are not the usual ones count as given.
        data: its data.
        workers: processes that load the data, if they were given.
    """
    usual = dataclasses.asdict(TrainOptions()) | dataclasses.asdict(Preprocess())
    usual |= {"transform": "", "val_split": 0.0, "workers": None}
    now = dataclasses.asdict(job.options) | dataclasses.asdict(job.preprocess)
    now |= {"transform": job.transform, "val_split": job.val_split, "workers": workers}
    said: dict[str, str] = {}
    for names, why in _reasons(job, data):
        said |= {
            name: f"--{name.replace('_', '-')} is not used: {why}"
            for name in names
            if now[name] != usual[name] and name not in said
        }
    return list(said.values())


def _reasons(job: Job, data: DataSet) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield names of options that are not used, with the reason."""
    options = job.options
    if "data" in job.code:
        yield (*IMAGES, "transform", "augment"), f"{job.data} prepares its examples itself"
    if job.transform:
        yield IMAGES, f"--transform {job.transform} prepares the images"
    if not job.data.startswith(FOLDER):
        yield ("val_split",), f"it divides the images of {FOLDER}DIR alone"
    if isinstance(data.train, LoaderSplit):
        yield ("batch_size", "workers"), f"the DataLoader of {job.data} has its own"
    if not isinstance(data.train, FolderSplit | DatasetSplit):
        yield ("workers",), "the data are in memory"
    if not options.augment:
        yield ("crop", "flip"), "they belong to the augmentation, which is off"
    if not options.distil:
        yield ("temperature",), "it belongs to --distil"
    if job.loss:
        yield ("label_smoothing",), f"--loss {job.loss} gets the targets as they are"
    yield (
        tuple(name for name in ("momentum", "weight_decay") if not takes(options, name)),
        f"{options.optimizer} has none",
    )
