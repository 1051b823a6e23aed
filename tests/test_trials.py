"""Random inputs, and whether two networks compute the same on them."""

import pytest
import torch
from torch import Tensor, nn

from fxprune import instrument
from fxprune.errors import TraceError
from fxprune.trials import difference, fresh_inputs


def test_fresh_inputs_are_like_the_example() -> None:
    example = (
        torch.randn(50, 3, 4, 4) * 2 + 5,
        torch.tensor([3, 9]).repeat(25),
        torch.ones(7, 2),
        torch.zeros(50, 1),
    )
    drawn = fresh_inputs(example, 200, torch.Generator().manual_seed(0))
    assert [tuple(t.shape) for t in drawn] == [(200, 3, 4, 4), (200,), (7, 2), (200, 1)]
    assert [t.dtype for t in drawn] == [t.dtype for t in example]
    assert float(drawn[0].mean()) == pytest.approx(5, abs=0.2)
    assert float(drawn[0].std()) == pytest.approx(2, abs=0.1)
    assert drawn[1].unique().tolist() == [3, 9]
    assert float(drawn[3].std()) == pytest.approx(1, abs=0.2)


class AsksForType(nn.Module):
    """What is traced is no Tensor, so that the trace goes the other way."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.conv, self.fc, self.twice = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.twice and isinstance(x, Tensor):
            x = 2 * x
        return self.fc(x.mean((2, 3)))


def test_a_trace_that_is_another_network_is_refused() -> None:
    inputs = (torch.zeros(2, 3, 8, 8),)
    instrument(AsksForType(twice=False), inputs)
    model = AsksForType(twice=True).train()
    with pytest.raises(TraceError, match="the trace of AsksForType is another network"):
        instrument(model, inputs)
    assert model.training
    assert model.conv.training


class Counts(nn.Module):
    """Does not do the same twice."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


@pytest.mark.parametrize(
    ("model", "other", "wanted"),
    [
        (nn.Dropout(0.5), nn.Dropout(0.5), 0.0),
        (nn.Identity(), lambda x: 1.5 * x, 0.5),
        (nn.Identity(), lambda x: (x, x), float("inf")),
        (nn.Identity(), lambda x: x / 0, float("inf")),
        (Counts(), lambda x: 3 * x, None),
        (nn.Conv2d(4, 2, 3), nn.Identity(), None),
    ],
    ids=["same", "more", "two outputs", "not finite", "changes", "does not run"],
)
def test_difference(model: nn.Module, other: nn.Module, wanted: float | None) -> None:
    found = difference(model, other, (torch.zeros(2, 3, 8, 8),))
    assert found == (wanted if wanted is None else pytest.approx(wanted))
