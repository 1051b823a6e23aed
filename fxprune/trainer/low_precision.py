"""Writes files of lower precision beside an exported one, and scores each on the run's data."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.data import DataSet, Split
from fxprune.equivalence import fresh_inputs
from fxprune.export.low_precision import Lowered, write_fp16, write_int8
from fxprune.export.onnx import BATCHES, ExportReport, output_names_of
from fxprune.export.runtime import runtime
from fxprune.trainer.evaluate import score
from fxprune.trainer.placement import Placement
from fxprune.trainer.task import Scores, Task

TURNS, WARM = 60, 10
"""How often each file is run to time it, and how often before that."""

CPU = Placement(torch.device("cpu"), None, channels_last=False)


@dataclass(frozen=True)
class OutputForm:
    """The form in which the network returns its outputs, which a file returns as a list.

    Attributes:
        keyed: whether it is a dict, by the names of the outputs; else a tensor or a tuple.
        batch: the one batch size that the file takes; None for any.
    """

    keyed: bool = False
    batch: int | None = None


def score_file(path: Path, split: Split, task: Task, layout: OutputForm) -> Scores:
    """Score an ONNX file on a split, in ONNX Runtime on the CPU.

    Raises:
        ExportError: ONNX Runtime cannot run it.
        DataError: the loss or the metric do not take what it returns.
    """
    return score(_File(path, layout), split, CPU, layout.batch or 32, task=task)


class _File(nn.Module):
    """An ONNX file as a network."""

    def __init__(self, path: Path, layout: OutputForm) -> None:
        super().__init__()
        content = path.read_bytes()
        self.run, self.layout, self.names = runtime(content), layout, output_names_of(content)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given = [leaf for leaf in pytree.tree_leaves((inputs, named)) if isinstance(leaf, Tensor)]
        count, size = len(given[0]), self.layout.batch or len(given[0])
        filled = [_filled(tensor, size) if len(tensor) == count else tensor for tensor in given]
        found = [torch.from_numpy(array) for array in self.run([t.numpy() for t in filled])]
        whole = [tensor[:count] if len(tensor) == size else tensor for tensor in found]
        if self.layout.keyed:
            return dict(zip(self.names, whole, strict=True))
        return whole[0] if len(whole) == 1 else tuple(whole)


def _filled(batch: Tensor, size: int) -> Tensor:
    """Fill a batch up to a size by its last example."""
    missing = size - len(batch)
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch


def calibration_batches(data: DataSet, count: int, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches of `count` training examples' inputs, drawn at random, not augmented.

    Args:
        data: the data of the run.
        count: how many examples; fewer where there are fewer.
        size: of a batch.
    """
    generator, left = torch.Generator().manual_seed(0), count
    for inputs, _ in data.train.batches(size, shuffle=generator):
        leaves = tuple(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
        yield leaves
        left -= len(leaves[0])
        if left <= 0:
            return


@dataclass(frozen=True)
class Scored(Lowered):
    """An ONNX file with its latency and its scores.

    Attributes:
        latency: median time of ONNX Runtime for one example, or the file's one batch, seconds.
        accuracy: share of the validation split that is right; None without data or classes.
        metric: value of the run's own metric on it, if there is one.
    """

    latency: float
    accuracy: float | None
    metric: float | None


@dataclass(frozen=True)
class Lowering:
    """Writes files of lower precision.

    Attributes:
        kinds: "fp16" and "int8".
        source: the data of the run, with the loss and the metric; None if they are not at hand.
        example: inputs in the likeness of which the files are compared.
        real: real inputs, compared as well.
        calibrate: how many training examples the ranges of int8 are of.
        layout: of the float32 file.
    """

    kinds: Sequence[str]
    source: tuple[DataSet, Task] | None
    example: tuple[Tensor, ...]
    real: tuple[Tensor, ...]
    calibrate: int
    layout: OutputForm

    def write(
        self, path: Path, report: ExportReport, begin: Callable[[], None] = lambda: None
    ) -> list[Scored]:
        """Write the files beside a float32 file; return all, with accuracy and latency.

        Args:
            path: the float32 file.
            report: what its export reported.
            begin: called before each file is written, and before all are scored.

        Raises:
            ExportError, ParityError, RunError, DataError: as `write_fp16` and `write_int8`.
        """
        sizes = BATCHES if self.layout.batch is None else (self.layout.batch,)
        draw = torch.Generator().manual_seed(0)
        trials = [fresh_inputs(self.example, size, draw) for size in sizes]
        enough = [size for size in sizes if self.real and len(self.real[0]) >= size]
        trials += [tuple(tensor[:size] for tensor in self.real) for size in enough]
        figures = report.max_rel_error, report.tolerance
        files = [Lowered("float32", path, report.bytes, *figures, "the network in torch", 0.0, 0)]
        for kind in self.kinds:
            begin()
            target = path.with_suffix(f".{kind}.onnx")
            if kind == "fp16":
                files.append(write_fp16(path, target, trials))
            else:
                files.append(write_int8(path, target, trials, self._batches()))
        begin()
        times = latencies([file.path for file in files], trials[0])
        return [self._scored(file, seconds) for file, seconds in zip(files, times, strict=True)]

    def _batches(self) -> list[tuple[Tensor, ...]]:
        if self.source is None:
            return []
        return list(calibration_batches(self.source[0], self.calibrate, self.layout.batch or 8))

    def _scored(self, file: Lowered, seconds: float) -> Scored:
        found = Scores(0.0, None)
        if self.source is not None:
            found = score_file(file.path, self.source[0].val, self.source[1], self.layout)
        return Scored(**vars(file), latency=seconds, accuracy=found.accuracy, metric=found.metric)


def latencies(paths: Sequence[Path], trial: Sequence[Tensor]) -> list[float]:
    """Measure the median time of each ONNX file on the same inputs, in turns, in seconds."""
    runs = [runtime(path.read_bytes()) for path in paths]
    arrays = [tensor.numpy() for tensor in trial]
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(TURNS):
        for run, own in zip(runs, times, strict=True):
            began = time.perf_counter()
            run(arrays)
            if turn >= WARM:
                own.append(time.perf_counter() - began)
    return [statistics.median(own) for own in times]
