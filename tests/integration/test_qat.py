"""A compact network that trained with fake quantisation becomes an int8 file that computes it."""

import importlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import fxprune
from fxprune.data import load
from fxprune.export.low_precision import write_int8
from fxprune.export.runtime import runtime
from fxprune.trainer.loop import fit
from fxprune.trainer.low_precision import calibration_batches
from fxprune.trainer.options import TrainOptions

SCRIPTS = Path(__file__).parents[2] / "examples"
EXAMPLE = (torch.zeros(2, 1, 8, 8),)
OPTIONS = TrainOptions(epochs=4, lr=0.01, optimizer="adamw", batch_size=64, device="cpu")


class Net(nn.Module):
    """A residual sum, and a depthwise convolution whose channels have ranges of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.depth, self.inner = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32)
        self.wide, self.outer = nn.Conv2d(32, 64, 3, stride=2), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.inner(self.depth(x)))
        out: Tensor = self.head(torch.relu(self.outer(self.wide(x))).mean((2, 3)))
        return out


@pytest.mark.slow
def test_the_int8_file_has_the_trained_weights_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    example = importlib.import_module("fake_quantisation")
    torch.manual_seed(0)
    digits = load("digits")
    images, labels = next(digits.val.batches(1000))
    gated = fxprune.instrument(Net(), EXAMPLE, "magnitude", "keep=0.5")
    fit(gated, digits, OPTIONS)
    compact = fxprune.fold(fxprune.shrink(gated.eval()))
    example.fake_quantise(compact)
    fit(compact, digits, OPTIONS)
    with torch.no_grad():
        meant = compact.eval()(images).argmax(1)
    example.unquantise(compact)

    path = tmp_path / "compact.onnx"
    fxprune.export_onnx(compact, EXAMPLE, path)
    ranges = list(calibration_batches(digits, 200, 32))
    int8 = write_int8(path, tmp_path / "compact.int8.onnx", [(images,)], ranges)

    (logits,) = runtime(int8.path.read_bytes())([images.numpy()])
    said = torch.from_numpy(logits).argmax(1)
    assert (said == meant).double().mean() >= 0.99
    right = [float((answers == labels).double().mean()) for answers in (meant, said)]
    assert right[0] > 0.9
    assert right[1] >= right[0] - 0.01

    graph = onnx.load(int8.path).graph
    stored = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    for name, weight in compact.named_parameters():
        if name.endswith("weight"):
            values, scale = stored[f"{name}_quantized"], stored[f"{name}_scale"]
            assert values.dtype == np.int8
            steps = weight.detach().numpy() / scale.reshape(-1, *[1] * (weight.dim() - 1))
            assert np.abs(steps - values).max() < 1e-3
