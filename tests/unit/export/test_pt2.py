"""Export to torch's own format: what is written computes the same, or nothing is written."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.errors import ExportError, ParityError
from fxprune.export.pt2 import export_pt2


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def test_the_file_is_the_network_at_any_batch(tmp_path: Path) -> None:
    example = (torch.randn(2, 3, 9, 9),)
    compact = fxprune.shrink(fxprune.instrument(net(), example)).eval()
    report = export_pt2(compact, example, tmp_path / "net.pt2")
    assert report.bytes == (tmp_path / "net.pt2").stat().st_size
    assert report.max_rel_error <= 2e-5
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for size in (1, 5):
        x = torch.randn(size, 3, 9, 9)
        torch.testing.assert_close(loaded(x), compact(x), rtol=1e-6, atol=1e-7)


def test_an_input_without_a_batch(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.body(x * scale[:, None, None])

    example = (torch.randn(2, 3, 9, 9), torch.rand(3))
    compact = fxprune.shrink(fxprune.instrument(Scaled(), example).eval())
    export_pt2(compact, example, tmp_path / "net.pt2")
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    x, scale = torch.randn(5, 3, 9, 9), torch.rand(3)
    torch.testing.assert_close(loaded(x, scale), compact(x, scale), rtol=1e-6, atol=1e-7)


def test_a_file_that_would_differ_is_not_written(tmp_path: Path) -> None:
    model, other = net(), net()
    with torch.no_grad():
        other[3].bias.add_(1e-3)
    with pytest.raises(ParityError, match="would not compute what the network computes"):
        export_pt2(model, (torch.randn(2, 3, 9, 9),), tmp_path / "net.pt2", reference=other)
    with torch.no_grad():
        other[3].bias.fill_(torch.nan)
    with pytest.raises(ParityError):
        export_pt2(other, (torch.randn(2, 3, 9, 9),), tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_network_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, 3 * 81)

    with pytest.raises(ExportError, match="cannot export the network"):
        export_pt2(Fixed(), (torch.randn(2, 3, 9, 9),), tmp_path / "net.pt2")
