"""What each export format costs: bytes, difference, latency and, once trained, accuracy.

    python tools/bench/formats.py --networks resnet18 mobilenet_v2 --image-size 64 --data digits

Each network of torchvision begins with random weights, is instrumented at half its macs, trained
on scikit-learn's digits (enlarged, three channels; without `--data digits` not at all), shrunk and
written in all formats, by the functions that `fxprune export` calls. int8 is calibrated on training
images, or without data on random ones. Printed is a Markdown table for each network. Bytes and
latency are shares of the dense network's float32 ONNX file. The latency is that of ONNX Runtime in
one thread for one example, hot: each file's turns alternate with the dense file's, the processor's
time is counted, and beside the median stand the quartiles.
"""

import argparse
import importlib.util
import math
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.data import DataSet, load
from fxprune.data.load import from_tensors
from fxprune.equivalence import fresh_inputs
from fxprune.errors import ExportError, ParityError
from fxprune.export.bench import Target, measure
from fxprune.export.low_precision import write_fp16, write_int8
from fxprune.export.onnx import BATCHES, export_onnx
from fxprune.export.plain import export_plain
from fxprune.export.pt2 import export_pt2
from fxprune.export.reference import reference_of
from fxprune.export.timing import Effort, Quotient
from fxprune.trainer.evaluate import score
from fxprune.trainer.loop import fit
from fxprune.trainer.low_precision import CPU, OutputForm, calibration_batches, score_file
from fxprune.trainer.options import TrainOptions
from fxprune.trainer.task import Task

CALIBRATE, BATCH = 200, 8
EFFORT = Effort(noisy=math.inf)  # a figure in any case
HEAD = """\
| format | bytes / dense | from its reference | from float32 | latency / dense | accuracy |
| --- | --- | --- | --- | --- | --- |"""


@dataclass(frozen=True)
class Row:
    """A format; what is not measured for it is None, and `refused` says why it was not written."""

    name: str
    bytes: float | None = None
    error: float | None = None
    from_float32: float | None = None
    latency: Quotient | None = None
    accuracy: float | None = None
    refused: str = ""

    def __str__(self) -> str:
        if self.refused:
            return f"| {self.name} | refused: {self.refused} | | | | |"
        time = self.latency
        latency = "–" if time is None else f"{time.median:.2f} ({time.low:.2f}–{time.high:.2f})"
        cells = (
            self.name,
            f"{self.bytes:.3f}",
            "–" if self.error is None else f"{self.error:.1e}",
            "–" if self.from_float32 is None else f"{self.from_float32:.1e}",
            latency,
            "–" if self.accuracy is None else f"{100 * self.accuracy:.1f} %",
        )
        return f"| {' | '.join(cells)} |"


class Called(nn.Module):
    """A module that evaluation must not switch, as those of torch.export."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, images: Tensor) -> Any:
        return self.call(images)


def enlarged_digits(size: int) -> DataSet:
    """Load digits as images [N, 3, size, size]."""
    data = load("digits")
    parts = []
    for split in (data.train, data.val):
        images = functional.interpolate(split.images.float(), size=(size, size), mode="bilinear")
        parts.append((images.byte().expand(-1, 3, -1, -1).contiguous(), split.labels))
    return from_tensors("digits", *parts, data.classes, pad=size // 8)


def loaded(path: Path) -> nn.Module:
    """Load plain code as a user does."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


def table(
    dense: nn.Module,
    example: tuple[Tensor, ...],
    folder: Path,
    data: DataSet | None = None,
    options: TrainOptions | None = None,
    effort: Effort = EFFORT,
) -> list[Row]:
    """Prune a network, train it where there are data, and write and measure all formats."""
    gated = fxprune.instrument(dense, example, policy="utility", budget="macs=0.5")
    if data is not None:
        fit(gated, data, options or TrainOptions())
    compact = fxprune.shrink(gated.eval())
    reference = reference_of(gated, dense.eval())
    draw = torch.Generator().manual_seed(0)
    trials = [fresh_inputs(example, size, draw) for size in BATCHES]
    calibration = [fresh_inputs(example, BATCH, draw) for _ in range(CALIBRATE // BATCH)]
    real: Sequence[Tensor] = ()
    if data is not None:
        calibration = list(calibration_batches(data, CALIBRATE, BATCH))
        real = (next(data.val.batches(max(BATCHES)))[0],)
        trials += [tuple(tensor[:size] for tensor in real) for size in BATCHES]

    full = export_onnx(dense, example, folder / "dense.onnx").path
    whole = full.read_bytes()

    def accuracy(file: Path | nn.Module) -> float | None:
        if data is None:
            return None
        if isinstance(file, Path):
            return score_file(file, data.val, Task(), OutputForm()).accuracy
        return score(file, data.val, CPU, 32, task=Task()).accuracy

    def onnx(name: str, write: Callable[[], Any]) -> Row:
        try:
            report = write()
        except (ExportError, ParityError) as error:
            return Row(name, refused=f"{error.what}; {error.why}")
        time = measure(
            whole, report.path.read_bytes(), trials[0], Target(threads=1), effort=effort
        ).hot
        drift = getattr(report, "from_float32", None)
        share = report.bytes / len(whole)
        return Row(name, share, report.max_rel_error, drift, time, accuracy(report.path))

    source = folder / "compact.onnx"
    rows = [
        onnx("dense ONNX, again", lambda: export_onnx(dense, example, folder / "again.onnx")),
        onnx(
            "ONNX, float32",
            lambda: export_onnx(compact, example, source, inputs=real, reference=reference),
        ),
        onnx("ONNX, fp16", lambda: write_fp16(source, folder / "fp16.onnx", trials)),
        onnx("ONNX, int8", lambda: write_int8(source, folder / "int8.onnx", trials, calibration)),
    ]
    if data is not None:  # the dense network itself was not trained
        rows[0] = Row(rows[0].name, rows[0].bytes, rows[0].error, latency=rows[0].latency)
    pt2 = export_pt2(compact, example, folder / "compact.pt2", reference=reference)
    network = Called(torch.export.load(pt2.path).module().__call__)
    rows.append(Row("pt2", pt2.bytes / len(whole), pt2.max_rel_error, accuracy=accuracy(network)))
    plain = export_plain(compact, example, folder / "plain.py")
    rows.append(
        Row(
            "torch code",
            plain.bytes / len(whole),
            plain.max_rel_error,
            accuracy=accuracy(loaded(plain.path)),
        )
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--data", choices=["none", "digits"], default="none")
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    size = given.image_size
    data = enlarged_digits(size) if given.data == "digits" else None
    options = TrainOptions(epochs=given.epochs, lr=0.05, batch_size=64)
    for name in given.networks:
        torch.manual_seed(0)
        classes = len(data.classes) if data else 1000
        dense = torchvision.models.get_model(name, weights=None, num_classes=classes)
        with tempfile.TemporaryDirectory() as folder:
            rows = table(dense, (torch.zeros(2, 3, size, size),), Path(folder), data, options)
        print(f"\n{name}, {size}x{size}, data: {given.data}\n", HEAD, *rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
