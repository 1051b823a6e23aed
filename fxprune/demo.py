"""The main job in one go: a small residual CNN learns digits, dense and gated, side by side.

`build_model` and `example_inputs` make this module a source like any other:
`fxprune inspect fxprune.demo:build_model`.
"""

import copy
import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxprune import api
from fxprune.data import DataSet, load
from fxprune.errors import RunError
from fxprune.export.compare import Comparison, compact_of, compare_onnx
from fxprune.export.onnx import BATCHES
from fxprune.files import CHECK, write_bytes
from fxprune.gated.attach import attach
from fxprune.gated.module import GatedModule
from fxprune.report.exported import Exported
from fxprune.report.of_runs import write_beside
from fxprune.runs.run import SUFFIX, Run
from fxprune.trainer.job import Job
from fxprune.trainer.loop import EpochMetrics, Tick, fit
from fxprune.trainer.optimizer import make_optimizer
from fxprune.trainer.options import TrainOptions

WIDTH = 48
OPTIONS = TrainOptions(epochs=20, lr=0.05, batch_size=64, device="cpu")
POLICY, BUDGET = "balance", "macs=0.25"
SPEC = "fxprune.demo:build_model"
WARM_UP, TURNS = 5, 40
MARK = "about.txt"
README = b"""Written by `fxprune demo`, which empties this folder when it is called again.

digits.fxprune   the gated network's run directory: try `fxprune export` on it
dense            the dense network's checkpoint and metrics
compact.onnx     the pruned network
dense.onnx       the dense network
"""

example_inputs = (torch.zeros(2, 1, 8, 8),)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; [N, C, H, W] to [N, width, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the two convolutions make to the shortcut."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """A stem, three residual blocks and a linear head; images [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block1 = Block(width, width, 1)
        self.block2 = Block(width, 2 * width, 2)
        self.block3 = Block(2 * width, 4 * width, 2)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Average the last block's channels over the image and weigh them."""
        x = functional.relu(self.norm(self.stem(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def build_model() -> nn.Module:
    """Build the demo's network, untrained."""
    return DigitsNet()


@dataclass(frozen=True)
class Demo:
    """What the demo showed, of the dense network first and of the gated one second.

    Attributes:
        run: the gated network's run directory.
        run_of_dense: the folder with the dense network's checkpoint and metrics.
        exported: the compact file beside the dense one.
        dense_onnx: the dense network's file.
        accuracy: shares of the held-out digits that are named right, 0 to 1.
        step_seconds: median times of a training step, taken in turns.
        train_seconds: times of all epochs, with evaluation.
        report: the page that shows all this.
    """

    run: Path
    run_of_dense: Path
    exported: Comparison
    dense_onnx: Path
    accuracy: tuple[float, float]
    step_seconds: tuple[float, float]
    train_seconds: tuple[float, float]
    report: Path


def run(
    output: Path,
    *,
    options: TrainOptions = OPTIONS,
    begin: Callable[[str], None],
    progress: Callable[[Tick], None],
) -> Demo:
    """Train the dense and the gated network, and export both.

    Args:
        output: a folder for the files; made if it is missing, emptied if a demo wrote it.
        options: how both are trained.
        begin: called with each phase's name.
        progress: called after each training step.

    Raises:
        DataError: scikit-learn is missing.
        RunError: the folder holds something else, or cannot be written.
    """
    begin("reading the digits")
    digits = load("digits")
    prepare(output)
    torch.manual_seed(options.seed)
    dense = build_model()
    gated = api.instrument(dense, example_inputs, POLICY, BUDGET)
    folder = Run.create(output / f"digits{SUFFIX}", gated, SPEC)
    Job("digits", Path("data").resolve(), options).write(folder)
    begin("timing training steps")
    steps = steps_in_turns(dense, gated, digits, options)
    begin("training the dense network")
    full = fit(dense, digits, options, run=output / "dense", progress=progress)
    begin("training the gated network")
    narrow = fit(gated, digits, options, run=folder.path, progress=progress)
    begin("writing and checking ONNX")
    images, _ = next(digits.val.batches(max(BATCHES)))
    exported = compare_onnx(
        gated,
        compact_of(gated),
        dense,
        output / "compact.onnx",
        dense_path=output / "dense.onnx",
        real=(images,),
    )
    Exported.keep(folder, exported)
    report = write_beside(folder, gated, [dataclasses.asdict(metrics) for metrics in full])
    return Demo(
        run=folder.path,
        run_of_dense=output / "dense",
        exported=exported,
        dense_onnx=output / "dense.onnx",
        accuracy=(full[-1].val_accuracy or 0.0, narrow[-1].val_accuracy or 0.0),
        step_seconds=steps,
        train_seconds=(_seconds(full), _seconds(narrow)),
        report=report,
    )


def prepare(output: Path) -> None:
    """Make the folder; what an earlier demo wrote into it is removed.

    Raises:
        RunError: something else is there.
    """
    try:
        if output.exists() and not (output / MARK).exists() and any(output.iterdir()):
            raise RunError(
                f"cannot use the folder {output}",
                why="it is not empty, and no demo wrote it",
                do="give another one with --output",
            )
        for name in (f"digits{SUFFIX}", "dense"):
            shutil.rmtree(output / name, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot write to {output}", why=str(error), do=CHECK) from error
    write_bytes(output / MARK, README)


def steps_in_turns(
    dense: nn.Module, gated: GatedModule, digits: DataSet, options: TrainOptions
) -> tuple[float, float]:
    """Measure median seconds of a training step of copies of both, selection and exchange included.

    In turns, because the speed of a machine drifts by more than what is to be measured.
    """
    shuffle = torch.Generator().manual_seed(options.seed)
    images, labels = next(digits.train.batches(options.batch_size, shuffle=shuffle))
    full, narrow = copy.deepcopy(dense).train(), copy.deepcopy(gated).train()
    optimizers = [make_optimizer(network, options) for network in (full, narrow)]
    attach(narrow, optimizers[1])
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(WARM_UP + TURNS):
        for network, optimizer, own in zip((full, narrow), optimizers, times):
            began = time.perf_counter()
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(images), labels)
            torch.autograd.backward(loss)
            optimizer.step()
            own.append(time.perf_counter() - began)
    return median(times[0][WARM_UP:]), median(times[1][WARM_UP:])


def _seconds(history: list[EpochMetrics]) -> float:
    return sum(metrics.seconds for metrics in history)
