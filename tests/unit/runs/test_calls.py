"""A saved network is called as it was when it is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import OptionError
from fxprune.runs.calls import from_text

IMAGE, DEPTH = torch.randn(2, 3, 8, 8), torch.randn(2, 1, 8, 8)


class Net(nn.Module):
    """Takes a list, a dict, an option and a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3)
        self.o = nn.Conv2d(16, 4, 1)

    def forward(
        self, images: list[Tensor], more: dict[str, Tensor], *, twice: bool = False
    ) -> Tensor:
        y = self.o(torch.cat([self.a(images[0]).relu(), self.b(more["depth"]).relu()], 1))
        return y * 2 if twice else y


@torch.no_grad()
def test_lists_dicts_and_options_come_back(tmp_path: Path) -> None:
    given: dict[str, Any] = {"more": {"depth": DEPTH}, "twice": True}
    gated = fxprune.instrument(Net(), ([IMAGE],), example_kwargs=given).eval()
    fxprune.save(gated, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net", Net()).eval()
    assert torch.equal(loaded([IMAGE], **given), gated([IMAGE], **given))
    with pytest.raises(TypeError, match="twice=False"):
        loaded([IMAGE], more={"depth": DEPTH}, twice=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"args": []}',
        '{"args": [{"tensor": 7}], "kwargs": {"dict": {}}}',
        '{"args": [{"tensor": -1}], "kwargs": {"dict": {}}}',
        '{"args": [{"code": "x"}], "kwargs": {"dict": {}}}',
        '{"args": [], "kwargs": {"list": []}}',
        '{"args": [' + '{"list": [' * 40 + "]}" * 40 + '], "kwargs": {"dict": {}}}',
    ],
)
def test_what_is_damaged_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="how the inputs are given"):
        from_text(text, (IMAGE,))
