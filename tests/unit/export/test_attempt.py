"""Whether a network will export, told before it is trained."""

import linecache
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import ExportError
from fxprune.export.onnx import OnnxOptions
from fxprune.export.pt2 import export_pt2

X = torch.randn(3, 3, 8, 8)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def kept_lines() -> list[str]:
    return [name for name in linecache.cache if name.startswith("<eval_with_key>")]


@pytest.mark.slow
def test_no_export_leaves_the_sources_of_its_graphs(tmp_path: Path) -> None:
    gated = fxprune.instrument(Plain(), (X,), budget="keep=0.5").eval()
    compact = fxprune.shrink(gated)
    before = kept_lines()
    fxprune.try_export(gated)
    fxprune.export_onnx(compact, (X,), tmp_path / "a.onnx")
    export_pt2(compact, (X,), tmp_path / "a.pt2")
    assert kept_lines() == before


class Counts(Plain):
    """Keeps its code, which torch can follow."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / len(y)


class EachImage(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(EachImage, self).forward(image[None])[0] for image in x])


class Branches(Plain):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.mean() > 0 else -y


@pytest.mark.sampled(1)
@pytest.mark.parametrize("kind", [Plain, Counts])
def test_what_exports_at_any_batch(kind: type[Plain], tmp_path: Path) -> None:
    gated = fxprune.instrument(kind(), (X,))
    assert fxprune.try_export(gated) == (("batch", 3, 8, 8),)
    assert gated.training
    fxprune.export_onnx(fxprune.shrink(gated.eval()), (X,), tmp_path / "net.onnx")


def test_what_exports_at_one_batch(tmp_path: Path) -> None:
    gated = fxprune.instrument(EachImage(), (X,))
    assert fxprune.try_export(gated) == ((2, 3, 8, 8),)
    compact = fxprune.shrink(gated.eval())
    with pytest.raises(ExportError, match="--batch"):
        fxprune.export_onnx(compact, (X,), tmp_path / "net.onnx")
    fxprune.export_onnx(compact, (X,), tmp_path / "net.onnx", options=OnnxOptions(batch=3))
    names = [weight.name for weight in onnx.load(tmp_path / "net.onnx").graph.initializer]
    assert {"a.weight", "b.weight"} <= {*names}


class OfLengths(Plain):
    """Is cut to the largest number in `lengths`, which torch's first attempt cannot follow."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(x[..., : int(lengths.max())])


def test_attempts_that_fail_are_not_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    inputs = X, torch.tensor([8, 7, 8])
    gated = fxprune.instrument(OfLengths(), inputs).eval()
    compact = fxprune.shrink(gated)
    fxprune.export_onnx(compact, inputs, tmp_path / "net.onnx")
    with pytest.raises(ExportError):
        export_pt2(compact, inputs, tmp_path / "net.pt2")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_what_does_not_export(tmp_path: Path) -> None:
    gated = fxprune.instrument(Branches(), (X,))
    with pytest.raises(ExportError, match=r"torch\.where") as tried:
        fxprune.try_export(gated)
    with pytest.raises(ExportError) as refused:
        fxprune.export_onnx(fxprune.shrink(gated.eval()), (X,), tmp_path / "net.onnx")
    assert refused.value.do == tried.value.do
