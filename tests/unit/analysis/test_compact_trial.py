"""What a refused trial of narrow widths is put down to."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.analysis.compact_trial import culprits
from tests.support.law import at_random, gap, zeroed
from tests.support.topologies.base import randomised


@pytest.mark.parametrize("guilty", [{0}, {3}, {1, 2}, {0, 4}, {0, 1, 2, 3, 4}], ids=str)
def test_groups_that_are_refused_alone_are_found(guilty: set[int]) -> None:
    assert {*culprits(lambda groups: bool(guilty & {*groups}), range(5))} == guilty


def test_groups_that_are_refused_together_are_kept_together() -> None:
    def refuses(groups: Sequence[int]) -> bool:
        return {1, 3} <= {*groups}

    assert {*culprits(refuses, range(5))} == {*range(5)}
    assert {*culprits(refuses, [1, 3])} == {1, 3}


class EightAHead(nn.Module):
    """Attends with heads of 8 channels, by a number that does not follow the widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k, self.v = (nn.Linear(n, 32) for n in (3, 32, 32, 32))
        self.out, self.wide, self.narrow = nn.Linear(32, 32), nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1e9:
            x = x / 2
        x = self.stem(x.flatten(2).transpose(1, 2))
        heads = [layer(x).unflatten(2, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k)]
        values = self.v(x).unflatten(2, (-1, 8)).transpose(1, 2)
        weights = (heads[0] @ heads[1].transpose(2, 3)).softmax(-1)
        y = self.out((weights @ values).transpose(1, 2).flatten(2))
        return self.narrow(self.wide(y.relu()).relu()).mean(1)


@torch.no_grad()
def test_what_does_not_follow_narrow_widths_pins_itself_alone() -> None:
    model = randomised(nn.Sequential(EightAHead(), nn.Linear(5, 4))).eval()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    gated = fxprune.instrument(model.double(), (x,)).eval()
    makers = {m.parameter for group in gated.channels.groups for m in group.producers}
    assert {"0.wide.weight", "0.narrow.weight"} <= makers
    assert not makers & {"0.q.weight", "0.k.weight", "0.v.weight"}
    for seed in range(3):
        chosen = at_random(gated.channels, seed)
        gated.settle(chosen)
        wanted = gated(x)
        assert gap(wanted, fxprune.shrink(gated)(x)) < 1e-12
        assert gap(wanted, zeroed(model, gated, chosen)(x)) < 1e-12
