"""ONNX files of lower precision, made of a float32 file by ONNX Runtime's own converters.

*fp16*: weights and activations in half precision, inputs and outputs in float32. Its reference is
the float32 file.

*int8*: static quantisation in the QDQ form (arXiv 1712.05877): int8 weights for each output
channel, uint8 activations, whose ranges are those on the calibration examples. Its reference is
the same file computed without graph optimisations, that is in float32 between each quantising and
dequantising: so the check says that the int8 kernels compute what the file means. What
quantising itself costs is another question; it is reported as the difference from float32 and,
where there are validation data, as accuracy.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx.checker import ValidationError, check_model
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor

from fxprune.equivalence import relative_gap
from fxprune.errors import DataError, ExportError, ParityError
from fxprune.export.parity import Runner
from fxprune.export.runtime import runtime
from fxprune.files import scratch, write_bytes

Kind = Literal["float32", "fp16", "int8"]

TOLERANCE: Mapping[str, float] = {"fp16": 1e-2, "int8": 5e-2}
"""Largest difference from the reference, as a share of its largest output.

Half precision has 11 bits, and errors add up over some fifty layers. Of int8 a sum that rounds to
the other side is one step of 255 off, and following layers widen it.
"""

REFERENCE: Mapping[str, str] = {
    "fp16": "the float32 file",
    "int8": "the same file computed in float32 between quantising and dequantising",
}

LEAVE = "leave out {}; the float32 file can be written"
"""What to do where a network has no form in the precision of an option."""


@dataclass(frozen=True)
class Lowered:
    """An ONNX file of some precision, and how far it is from its references.

    Attributes:
        kind: its precision.
        path: the file.
        bytes: its size.
        max_rel_error: largest difference from its reference, as a share of its largest output.
        tolerance: what that had to stay under.
        reference: what it was checked against, in words.
        from_float32: largest difference from the float32 file, as a share of its largest output;
            0 for that file itself.
        calibrated: number of examples that the ranges of int8 were measured on; 0 for others.
    """

    kind: Kind
    path: Path
    bytes: int
    max_rel_error: float
    tolerance: float
    reference: str
    from_float32: float
    calibrated: int


def write_fp16(source: Path, path: Path, trials: Sequence[Sequence[Tensor]]) -> Lowered:
    """Write a float32 ONNX file anew in half precision.

    Args:
        source: the float32 file.
        path: where to.
        trials: inputs to compare on.

    Raises:
        ExportError: the file cannot be converted, or ONNX Runtime cannot run it.
        ParityError: an output differs by more than the tolerance, or is not finite.
        RunError: the file cannot be written.
    """
    model = onnx.load(str(source))
    try:
        lowered = convert_float_to_float16(model, keep_io_types=True)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ExportError(
            "the network cannot be written in half precision",
            why=str(error).splitlines()[0],
            do=LEAVE.format("--fp16"),
        ) from error
    OnnxModel(lowered).topological_sort()  # the converter puts casts of the inputs last
    content = lowered.SerializeToString()
    run, wanted = runtime(content), runtime(source.read_bytes())
    return _written("fp16", lowered, path, trials, run, wanted, wanted)


def write_int8(
    source: Path,
    path: Path,
    trials: Sequence[Sequence[Tensor]],
    calibration: Sequence[Sequence[Tensor]],
) -> Lowered:
    """Write a float32 ONNX file anew with int8 weights and uint8 activations.

    Args:
        source: the float32 file.
        path: where to.
        trials: inputs to compare on.
        calibration: batches of inputs, as the network will see them.

    Raises:
        DataError: the calibration inputs are not those of the network.
        ExportError: the file cannot be quantised, or ONNX Runtime cannot run it.
        ParityError: an output differs by more than the tolerance, or is not finite.
        RunError: the file cannot be written.
    """
    entries = onnx.load(str(source)).graph.input
    _check_calibration(entries, calibration)
    names = [entry.name for entry in entries]
    with scratch() as folder:
        plain, quantised = folder / "plain.onnx", folder / "int8.onnx"
        try:
            quant_pre_process(str(source), str(plain), skip_symbolic_shape=True)
            nodes = onnx.load(str(plain)).graph.node
            # of a norm that is part of no convolution the quantiser takes the wrong axis
            bare = [node.name for node in nodes if node.op_type == "BatchNormalization"]
            quantize_static(
                str(plain),
                str(quantised),
                _Reader(names, calibration),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=bare,
            )
        except (ValueError, RuntimeError, KeyError, AssertionError) as error:
            raise ExportError(
                "the network cannot be quantised",
                why=(str(error) or type(error).__name__).splitlines()[0],
                do=LEAVE.format("--int8"),
            ) from error
        model = onnx.load(str(quantised))
    content = model.SerializeToString()
    run, meant = runtime(content), runtime(content, optimised=False)
    float32 = runtime(source.read_bytes())
    count = sum(len(batch[0]) for batch in calibration)
    return _written("int8", model, path, trials, run, meant, float32, count)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands batches to ONNX Runtime's calibration."""

    def __init__(self, names: Sequence[str], batches: Sequence[Sequence[Tensor]]) -> None:
        self.batches: Iterator[dict[str, Any]] = iter(
            [
                {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, batch)}
                for batch in batches
            ]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the names of the inputs; None at the end."""
        return next(self.batches, None)


def _check_calibration(entries: Sequence[Any], batches: Sequence[Sequence[Tensor]]) -> None:
    if not batches or not batches[0]:
        raise DataError(
            "there are no data to calibrate int8 with",
            do="train the run first, or give its --data: ranges are measured on examples",
        )
    for entry, tensor in zip(entries, batches[0]):
        sizes = entry.type.tensor_type.shape.dim
        fits = len(sizes) == tensor.dim() and all(
            size.dim_param or size.dim_value == own for size, own in zip(sizes, tensor.shape)
        )
        if not fits or len(entries) != len(batches[0]):
            wanted = [size.dim_param or size.dim_value for size in sizes]
            raise DataError(
                f"the calibration data do not fit the input {entry.name}",
                why=f"they are {list(tensor.shape)}, the network takes {wanted}",
                do="calibrate on the data that the run was trained on",
            )
    refuse_not_finite(batches)


def refuse_not_finite(batches: Sequence[Sequence[Tensor]]) -> None:
    """Check that calibration data are numbers.

    Raises:
        DataError: a value is infinite or NaN.
    """
    if not all(tensor.isfinite().all() for batch in batches for tensor in batch):
        raise DataError(
            "the calibration data are not finite",
            why="the ranges of int8 are measured on them",
            do="take the examples with NaN or infinite values out of the run's data",
        )


def _written(
    kind: Kind,
    model: Any,
    path: Path,
    trials: Sequence[Sequence[Tensor]],
    run: Runner,
    meant: Runner,
    float32: Runner,
    calibrated: int = 0,
) -> Lowered:
    gap = max(_gap(run, meant, trial) for trial in trials)
    if not gap <= TOLERANCE[kind]:  # NaN too
        raise ParityError(
            f"the {kind} file would not compute what it has to; {path} is not written",
            why=f"the largest difference from {REFERENCE[kind]} is {gap:.1e} of the largest "
            f"output, more than {TOLERANCE[kind]:.0e}",
            do="keep this network in float32, or train it with smaller activations",
        )
    drift = max(_gap(run, float32, trial) for trial in trials)
    figures = {
        "precision": kind,
        "max_rel_error": gap,
        "tolerance": TOLERANCE[kind],
        "reference": REFERENCE[kind],
        "from_float32": drift,
        "calibrated": calibrated,
        "version": version("fxprune"),
    }
    known = {entry.key: entry for entry in model.metadata_props}
    for key, value in figures.items():
        entry = known.get(f"fxprune.{key}") or model.metadata_props.add(key=f"fxprune.{key}")
        entry.value = str(value)
    try:
        check_model(model)
    except ValidationError as error:
        raise ExportError(
            f"the {kind} file would be no valid ONNX",
            why=str(error).splitlines()[0],
            do=LEAVE.format(f"--{kind}"),
        ) from error
    content = model.SerializeToString()
    write_bytes(path, content)
    tolerance, reference = TOLERANCE[kind], REFERENCE[kind]
    return Lowered(kind, path, len(content), gap, tolerance, reference, drift, calibrated)


def _gap(run: Runner, wanted: Runner, trial: Sequence[Tensor]) -> float:
    """Compute the largest difference of an output, as a share of the largest value wanted."""
    arrays = [tensor.detach().cpu().numpy() for tensor in trial]
    gaps = [0.0]
    for found, own in zip(run(arrays), wanted(arrays), strict=True):
        if not np.issubdtype(own.dtype, np.floating):
            continue
        if not (np.isfinite(found).all() and np.isfinite(own).all()):
            return float("nan")
        gaps.append(relative_gap(torch.from_numpy(own), torch.from_numpy(found)))
    return max(gaps)
