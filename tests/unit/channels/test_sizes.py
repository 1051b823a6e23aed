"""Tensors made with another one's sizes, in each spelling, have its channels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import instrument, shrink
from tests.support.law import at_random, gap, zeroed

SPELLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros of sizes": lambda x: torch.zeros(x.size(0), x.size(1), x.size(2), x.size(3)).add(x),
    "ones of a list": lambda x: torch.ones([x.shape[0], x.shape[1], *x.shape[2:]]) + x,
    "zeros of the shape": lambda x: torch.zeros(x.shape) + x,
    "size by name": lambda x: torch.zeros(size=x.shape, dtype=x.dtype) + x,
    "full": lambda x: torch.full(x.shape, 2.0) * x,
    "full of integers": lambda x: torch.full(x.shape, 2) * x,
    "full of truths": lambda x: torch.full(x.size(), True) * x,
    "full by name": lambda x: torch.full(x.shape, fill_value=2.0) * x,
    "new zeros": lambda x: x.new_zeros(x.shape) + x,
    "new ones of numbers": lambda x: x.new_ones(x.size(0), x.size(1), 1, 1) * x,
    "new full": lambda x: x.new_full(x.shape, 3.0) * x,
    "of another tensor": lambda x: x.mean().new_zeros(x.shape) + x,
    "one channel": lambda x: torch.ones(x.size(0), 1, *x.shape[2:]) * x,
}


class Net(nn.Module):
    def __init__(self, spelled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.last = nn.Conv2d(8, 4, 3)
        self.spelled = spelled

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.spelled(self.first(x)))


@pytest.mark.parametrize("spelled", SPELLINGS.values(), ids=SPELLINGS)
def test_channels_go(spelled: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = Net(spelled).double().eval(), torch.randn(2, 3, 8, 8).double()
    gated = instrument(model, x).eval()
    assert [group.size for group in gated.channels.groups] == [8]
    for seed in range(2):
        gated.settle(chosen := at_random(gated.channels, seed))
        with torch.no_grad():
            wanted = zeroed(model, gated, chosen)(x)
            assert gap(shrink(gated)(x), wanted) < 1e-12
            assert gap(gated(x), wanted) < 1e-12
