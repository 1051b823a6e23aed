"""What a run is trained on and how, so that calling `fxprune train` again goes on."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import Field

from fxprune.data import FOLDER, NAMES, DataSet, Preprocess, load, own_data, own_transforms
from fxprune.errors import FxpruneWarning, OptionError, UnknownNameError
from fxprune.formats import read_record, write_record
from fxprune.policies import parse
from fxprune.runs.plan import Text
from fxprune.runs.run import Run, is_trained
from fxprune.runs.schema import Strict
from fxprune.trainer.checkpoint import refuse_others
from fxprune.trainer.options import TrainOptions

FILE = "train.json"
NOTHING: Mapping[str, Any] = MappingProxyType({})

Make = Callable[[str, str], Any]


@dataclass(frozen=True)
class _Record(Strict):
    """The schema of train.json."""

    data: Text
    root: Text
    options: TrainOptions
    preprocess: Preprocess = Preprocess()  # noqa: RUF009 - it is frozen
    transform: Text = ""
    loss: Text | None = None
    metric: Text | None = None
    val_split: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Job:
    """The data and the options of a training.

    Attributes:
        data: name of the data set, see `fxprune.data.load`; or of a data factory, such as
            `data.py:factory`.
        root: folder of the data sets.
        options: how the network is trained.
        preprocess: what happens to an image before the network sees it.
        transform: "pkg:factory" of the user's own transform, empty if there is none.
        loss: name of the user's own loss, such as `losses.py:dice`.
        metric: likewise of the metric.
        val_split: the share of a `folder:` without DIR/val that is only evaluated.
    """

    data: str
    root: Path
    options: TrainOptions
    preprocess: Preprocess = Preprocess()  # noqa: RUF009 - it is frozen
    transform: str = ""
    loss: str | None = None
    metric: str | None = None
    val_split: float = 0.0

    @property
    def code(self) -> dict[str, str]:
        """The names of code that the job has, by what each is for; see `fxprune.runs.trust`."""
        names = {
            "data": self.data,
            "loss": self.loss,
            "metric": self.metric,
            "transform": self.transform,
        }
        if ":" not in self.data or self.data.startswith(FOLDER):  # else it names a factory
            del names["data"]
        return {kind: name for kind, name in names.items() if name}

    @staticmethod
    def of(
        run: Run,
        data: str | None,
        root: Path | None,
        given: Mapping[str, Any],
        images: Mapping[str, Any] | None = None,
        transform: str | None = None,
        *,
        own: Mapping[str, str | None] | None = None,
        val_split: float | None = None,
    ) -> "Job":
        """Make the last call's job with what is given now; None stands for not given.

        An empty text stands for the usual loss or metric, or for no transform.

        What of code is given now is trusted from now on.

        Args:
            run: the run.
            data: name of the data set.
            root: folder of the data sets.
            given: fields of `TrainOptions`.
            images: arguments of `Preprocess.parse`.
            transform: as the attribute.
            own: names of the user's own "loss" and "metric".
            val_split: as the attribute.

        Raises:
            OptionError: no data set was ever named, or an option is out of its range.
            RunError: what the last call wrote is damaged; or the run is trained, and its images
                were prepared otherwise, or its loss or metric was another.
        """
        old = Job.read(run)
        name = absolute(data) if data is not None else (old.data if old else None)
        if name is None:
            raise OptionError(
                f"nothing says what to train {run.path} on",
                do=f"give --data with one of {', '.join(NAMES)}, data.py:factory",
            )
        options = dataclasses.replace(
            old.options if old else TrainOptions(),
            **{key: value for key, value in given.items() if value is not None},
        )
        begins_trained = run.weights is not None and _falls(run.plan.policy)
        was_auto = old is not None and old.options.budget_schedule == "auto"
        if options.budget_schedule == "auto" and begins_trained and not was_auto:
            # Where the last call left "auto", an older fxprune planned the fall that way: it stays.
            options = dataclasses.replace(options, budget_schedule="quick")
        where = root or (old.root if old else Path("data"))
        preprocess = Preprocess.parse(**(images or {}), base=old.preprocess if old else None)
        if val_split is not None and not 0 <= val_split < 1:
            raise OptionError(
                f"val_split cannot be {val_split}", do="give a share from 0 up, below 1"
            )
        names = {"loss": old.loss, "metric": old.metric} if old else {}
        names |= {kind: text or None for kind, text in (own or {}).items() if text is not None}
        share = val_split if val_split is not None else (old.val_split if old else 0.0)
        folder = where.expanduser().resolve()
        named = transform if transform is not None else (old.transform if old else "")
        job = Job(name, folder, options, preprocess, named, **names, val_split=share)
        if is_trained(run.checkpoint):
            (old or job).require_same(job, run)
            if old is None:
                warnings.warn(
                    f"{run.path} is trained and has no {FILE}: whether its loss, its metric and "
                    "the preparation of its images were the same as now is not known",
                    FxpruneWarning,
                    stacklevel=2,
                )
        given_names = {"data": data, "transform": transform, **(own or {})}
        job.record(run, [kind for kind, text in given_names.items() if text])
        return job

    def differing(self, other: "Job") -> dict[str, tuple[Any, Any]]:
        """Compare what a training keeps from its begin to its end; its options aside.

        Returns:
            By name what this job has and the other one has.
        """
        was, now = (
            vars(job.preprocess)
            | {name: getattr(job, name) or "none" for name in ("transform", "loss", "metric")}
            | {"val_split": job.val_split}
            for job in (self, other)
        )
        return {name: (was[name], now[name]) for name in was if was[name] != now[name]}

    def require_same(self, other: "Job", run: Run) -> None:
        """Refuse another job than the one that a trained run was begun with, options aside.

        Raises:
            RunError: what is kept from begin to end differs.
        """
        refuse_others(run.checkpoint, self.differing(other))

    def record(self, run: Run, kinds: Iterable[str]) -> None:
        """Remember that the user gave the names of code of these kinds."""
        for kind, name in self.code.items():
            if kind in kinds:
                run.record(kind, name)

    @staticmethod
    def read(run: Run) -> "Job | None":
        """Read the job of the last call; None if there was none.

        Raises:
            RunError: the file is damaged.
        """
        path = run.path / FILE
        if not (path.exists() or path.is_symlink()):  # a link to nothing is damage
            return None
        found = read_record(path, _Record)
        return Job(**{**vars(found), "root": Path(found.root)})

    def keep(self, run: Run) -> None:
        """Write the job for the next call; to be called by who holds the run's lock.

        Raises:
            RunError: another call has trained the run since this job was made, and otherwise.
        """
        old = Job.read(run)
        if old is not None and is_trained(run.checkpoint):
            old.require_same(self, run)
        self.write(run)

    def write(self, run: Run) -> None:
        """Write the job, whatever was there."""
        record = _Record(**{**vars(self), "root": str(self.root)})
        write_record(run.path / FILE, dataclasses.asdict(record))

    def require(self, run: Run) -> None:
        """Refuse the job's names of code that the user neither gave nor trusts.

        Raises:
            RunError: there is one.
        """
        for kind, name in self.code.items():
            run.require(kind, name)

    def made(self, run: Run, make: Make) -> dict[str, Any]:
        """Make what the job's names of code stand for: "data", "loss", "metric", "transform".

        Args:
            run: the run.
            make: called with a name and what it is for.

        Raises:
            RunError: the run stores a name that the user neither gave nor trusts.
        """
        self.require(run)
        return {kind: make(name, kind) for kind, name in self.code.items()}

    def load(
        self,
        shape: Sequence[int],
        *,
        made: Mapping[str, Any] = NOTHING,
        download: bool = False,
        workers: int | None = None,
    ) -> DataSet:
        """Load the data; images of `folder:` take the size of the network's first input.

        Args:
            shape: of that input, with its batch.
            made: what `made` returned.
            download: fetch what is missing.
            workers: as of `fxprune.data.load`.

        Raises:
            DataError: as `fxprune.data.load` and `own_data`; or the transform's factory returned
                no transform.
        """
        if "data" in made:
            return own_data(made["data"], self.data, workers=workers or 0)
        transform = None
        if "transform" in made:
            transform = own_transforms(made["transform"], self.transform)
        size = (shape[-2], shape[-1]) if len(shape) == 4 else (224, 224)
        return load(
            self.data,
            root=self.root,
            download=download,
            image_size=size,
            workers=workers,
            preprocess=self.preprocess,
            transform=transform,
            val_split=self.val_split,
        )


def absolute(data: str) -> str:
    """Make the path of `folder:DIR` absolute, for a call from another folder."""
    kind, colon, folder = data.partition(":")
    return f"{kind}:{Path(folder).expanduser().resolve()}" if kind + colon == FOLDER else data


def _falls(policy: str) -> bool:
    """Tell whether a policy's training does best to begin with all channels, as most do.

    One of the user's own is known only once the network's code has been imported.
    """
    try:
        return parse(policy).falls
    except UnknownNameError:
        return True
