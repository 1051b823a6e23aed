"""The exported files in OpenVINO, and after onnxsim: each against ONNX Runtime on the same file."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pytest
import torch
from onnxsim import simplify
from torch import Tensor, nn

import fxprune
from fxprune.export.low_precision import write_fp16, write_int8

Array = npt.NDArray[np.float32]


class Conv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int, groups: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = Conv(3, 16, 3), Conv(16, 32, 3), Conv(32, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(x + self.two(torch.relu(self.one(x))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = Conv(3, 16, 3), Conv(16, 32, 1)
        self.depth, self.narrow = Conv(32, 32, 3, groups=32), Conv(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        inner = nn.functional.relu6(self.depth(nn.functional.relu6(self.wide(x))))
        return x + self.narrow(inner)


class RepVGG(nn.Module):
    """Branches of training that are added: 3 x 3, 1 x 1 and a norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = Conv(3, 16, 3), nn.BatchNorm2d(16)
        self.three, self.one = Conv(16, 16, 3), Conv(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(self.three(x) + self.one(x) + self.norm(x))


def images(count: int) -> Tensor:
    """Make images of different brightness, so that what is computed of them differs."""
    draw = torch.Generator().manual_seed(count)
    bright = 3 * torch.rand(count, 3, 1, 1, generator=draw)
    return bright + torch.randn(count, 3, 16, 16, generator=draw)


@pytest.fixture(scope="module", params=[Residual, Depthwise, RepVGG])
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A pruned network in each precision, its batch norms measured on images and folded."""
    torch.manual_seed(0)
    model = nn.Sequential(request.param(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    gated = fxprune.instrument(model.train(), (images(2),), "magnitude", "keep=0.5")
    for _ in range(5):
        gated(images(32))
    path = tmp_path_factory.mktemp("files") / "net.onnx"
    compact = fxprune.shrink(gated.eval(), passes="fold")
    fxprune.export_onnx(compact, (images(2),), path)
    trials = [(images(1),), (images(7),)]
    write_fp16(path, path.with_suffix(".fp16.onnx"), trials)
    write_int8(path, path.with_suffix(".int8.onnx"), trials, [(images(32),)])
    kinds = {"float32": ".onnx", "fp16": ".fp16.onnx", "int8": ".int8.onnx"}
    return {kind: path.with_suffix(suffix) for kind, suffix in kinds.items()}


def by_onnxruntime(model: str | bytes, batch: Tensor, *, precise: bool = True) -> Array:
    options = onnxruntime.SessionOptions()
    # see docs/guides/formats.md; ONNX Runtime cannot load simplified int8 files with it
    options.add_session_config_entry("session.x64quantprecision", str(int(precise)))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return np.asarray(found, np.float32)


def by_openvino(path: Path, batch: Tensor) -> Array:
    precision = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled: Any = openvino.Core().compile_model(str(path), "CPU", precision)
    return np.asarray(compiled([batch.numpy()])[0], np.float32)


TOLERANCE = {"float32": 1e-5, "fp16": 5e-3, "int8": 5e-2}
"""Of the largest output: OpenVINO may keep more digits of an fp16 or int8 file than it has to."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCE)
def test_openvino_computes_the_same(files: dict[str, Path], kind: str) -> None:
    for batch in (images(1), images(7)):
        wanted, found = by_onnxruntime(str(files[kind]), batch), by_openvino(files[kind], batch)
        if len(batch) > 1:
            assert wanted.std(axis=0).max() > 0.1 * np.abs(wanted).max()  # of others, others
        assert np.abs(found - wanted).max() <= TOLERANCE[kind] * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", TOLERANCE)
def test_a_simplified_file_computes_the_same(files: dict[str, Path], kind: str) -> None:
    simplified, checked = simplify(onnx.load(files[kind]))
    assert checked
    for batch in (images(1), images(7)):
        wanted = by_onnxruntime(str(files[kind]), batch, precise=False)
        found = by_onnxruntime(simplified.SerializeToString(), batch, precise=False)
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()
