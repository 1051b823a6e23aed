"""A module whose forward takes `*args` is exported as it is, without a trace by fxprune."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.export.pt2 import export_pt2


class Several(nn.Module):
    """Sums a convolution of each of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return sum((self.conv(each).relu() for each in more), self.conv(x))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_it_takes_any_number_of_inputs(count: int, tmp_path: Path) -> None:
    model = Several().eval()
    example = tuple(torch.randn(2, 3, 8, 8) for _ in range(count))
    assert fxprune.export_onnx(model, example, tmp_path / "net.onnx").batches == (1, 2, 7)
    assert export_pt2(model, example, tmp_path / "net.pt2").batches == (1, 2, 7)
    given = [torch.randn(5, 3, 8, 8) for _ in range(count)]
    with torch.no_grad():
        loaded = torch.export.load(tmp_path / "net.pt2").module()
        torch.testing.assert_close(loaded(*given), model(*given))
