"""What a run was told to train on and how, so that calling `fxprune train` again goes on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from fxprune.data import FOLDER, NAMES, DataSet, load
from fxprune.errors import OptionError
from fxprune.files import read_record, write_record
from fxprune.runs.plan import STRICT, Text
from fxprune.runs.run import Run
from fxprune.trainer.options import TrainOptions

FILE = "train.json"


@dataclass(frozen=True)
class _Record:
    """The schema of train.json."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    data: Text
    root: Text
    options: TrainOptions


@dataclass(frozen=True)
class Job:
    """The data and the options of a training.

    Attributes:
        data: name of the data set, see `fxprune.data.load`.
        root: folder of the data sets.
        options: how the network is trained.
    """

    data: str
    root: Path
    options: TrainOptions

    @staticmethod
    def of(run: Run, data: str | None, root: Path | None, given: Mapping[str, Any]) -> "Job":
        """The last call's job with what is given now; None stands for not given.

        Raises:
            OptionError: no data set was ever named, or an option is out of its range.
            RunError: what the last call wrote is damaged.
        """
        old = Job.read(run)
        name = _absolute(data) if data else (old.data if old else None)
        if name is None:
            raise OptionError(
                f"nothing says what to train {run.path} on",
                do=f"give --data with one of {', '.join(NAMES)}",
            )
        options = dataclasses.replace(
            old.options if old else TrainOptions(),
            **{key: value for key, value in given.items() if value is not None},
        )
        where = root or (old.root if old else Path("data"))
        return Job(name, where.expanduser().resolve(), options)

    @staticmethod
    def read(run: Run) -> "Job | None":
        """The job of the last call; None if there was none.

        Raises:
            RunError: the file is damaged.
        """
        path = run.path / FILE
        if not path.exists():
            return None
        found = read_record(path, _Record)
        return Job(found.data, Path(found.root), found.options)

    def write(self, run: Run) -> None:
        """Keeps the job for the next call."""
        record = _Record(self.data, str(self.root), self.options)
        write_record(run.path / FILE, dataclasses.asdict(record))

    def load(self, run: Run, *, download: bool = False, workers: int = 0) -> DataSet:
        """Loads the data; images of `folder:` take the size of the network's first input.

        Raises:
            DataError: as `fxprune.data.load`.
        """
        shape = run.plan.inputs[0][0]
        size = (shape[-2], shape[-1]) if len(shape) == 4 else (224, 224)
        return load(self.data, root=self.root, download=download, image_size=size, workers=workers)


def _absolute(data: str) -> str:
    """`folder:DIR` as another call, from another folder, will need it."""
    kind, colon, folder = data.partition(":")
    return f"{kind}:{Path(folder).expanduser().resolve()}" if kind + colon == FOLDER else data
