"""What a run was told to train on and how, so that calling `fxprune train` again goes on."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from fxprune.data import FOLDER, NAMES, DataSet, Preprocess, Transforms, load
from fxprune.errors import DataError, OptionError
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
    preprocess: Preprocess = Preprocess()  # noqa: RUF009 - it is frozen
    transform: Text = ""


@dataclass(frozen=True)
class Job:
    """The data and the options of a training.

    Attributes:
        data: name of the data set, see `fxprune.data.load`.
        root: folder of the data sets.
        options: how the network is trained.
        preprocess: what happens to an image before the network sees it.
        transform: "pkg:factory" of the user's own transform, empty if there is none. It is only
            compared with what is given: code that a file names is never imported.
    """

    data: str
    root: Path
    options: TrainOptions
    preprocess: Preprocess = Preprocess()  # noqa: RUF009 - it is frozen
    transform: str = ""

    @staticmethod
    def of(
        run: Run,
        data: str | None,
        root: Path | None,
        given: Mapping[str, Any],
        images: Mapping[str, Any] | None = None,
        transform: str = "",
    ) -> "Job":
        """The last call's job with what is given now; None stands for not given.

        Args:
            run: the run.
            data: name of the data set.
            root: folder of the data sets.
            given: fields of `TrainOptions`.
            images: arguments of `Preprocess.parse`.
            transform: as the attribute.

        Raises:
            OptionError: no data set was ever named, or an option is out of its range.
            RunError: what the last call wrote is damaged.
        """
        old = Job.read(run)
        name = absolute(data) if data else (old.data if old else None)
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
        if old and old.transform != transform:
            raise OptionError(
                f"{run.path} was trained with the transform {old.transform or 'of fxprune'}",
                why=f"now {transform or 'none'} is given, and what a run names is never imported",
                do=f"give --transform {old.transform}"
                if old.transform
                else "leave --transform out",
            )
        preprocess = Preprocess.parse(**(images or {}), base=old.preprocess if old else None)
        return Job(name, where.expanduser().resolve(), options, preprocess, transform)

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
        return Job(found.data, Path(found.root), found.options, found.preprocess, found.transform)

    def write(self, run: Run) -> None:
        """Keeps the job for the next call."""
        record = _Record(self.data, str(self.root), self.options, self.preprocess, self.transform)
        write_record(run.path / FILE, dataclasses.asdict(record))

    def load(
        self,
        shape: Sequence[int],
        *,
        download: bool = False,
        workers: int = 0,
        transform: Transforms | None = None,
    ) -> DataSet:
        """Loads the data; images of `folder:` take the size of the network's first input.

        Args:
            shape: of that input, with its batch.
            download: fetch what is missing.
            workers: processes that decode the images of `folder:`.
            transform: what `self.transform` names.

        Raises:
            DataError: as `fxprune.data.load`; or the run has a transform that is not given.
        """
        if self.transform and transform is None:
            raise DataError(
                f"the images of {self.data} need the transform {self.transform}",
                why="nothing that a run names is imported",
                do=f"give --transform {self.transform}",
            )
        size = (shape[-2], shape[-1]) if len(shape) == 4 else (224, 224)
        return load(
            self.data,
            root=self.root,
            download=download,
            image_size=size,
            workers=workers,
            preprocess=self.preprocess,
            transform=transform,
        )


def absolute(data: str) -> str:
    """`folder:DIR` as another call, from another folder, will need it."""
    kind, colon, folder = data.partition(":")
    return f"{kind}:{Path(folder).expanduser().resolve()}" if kind + colon == FOLDER else data
