"""Convolutions along the channels: the compact network sees zeros where channels are gone."""

import torch
from torch import Tensor, nn

from fxprune import analyze, instrument, shrink
from fxprune.passes import Program, apply
from tests.support.law import at_random, gap, zeroed
from tests.support.nets import BY_NAME
from tests.support.tiny import printed


@torch.no_grad()
def test_the_removed_channels_are_zero_to_their_neighbours() -> None:
    net = BY_NAME["neighbours"]
    model, inputs = net.model(), net.inputs()
    gated = instrument(model, inputs)
    for seed in range(5):
        chosen = at_random(gated.channels, seed)
        gated.settle(chosen)
        mask = torch.zeros(8, dtype=torch.float64)
        mask[chosen.channels] = 1.0
        dense = zeroed(model, gated, chosen)
        dense.eca.register_forward_pre_hook(lambda _, args, mask=mask: args[0] * mask)
        assert gap(dense(*inputs), gated(*inputs)) <= 1e-12
        assert gap(dense(*inputs), shrink(gated)(*inputs)) <= 1e-12


class InVain(nn.Module):
    """The channels are pinned all the same: they are the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.eca = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        return x * self.eca(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[:, :, None, None]


def test_nothing_is_left_of_it_where_the_channels_are_pinned() -> None:
    x = (torch.zeros(2, 3, 4, 4),)
    traced = apply("trace", Program(InVain().eval(), x))
    coupled = apply("couple", traced)
    assert printed(coupled.graph_module) == printed(traced.graph_module)
    assert [name for name, _ in coupled.module.named_buffers()] == []
    assert [group.size for group in analyze(InVain().eval(), x).groups] == [6]


class Repeating(nn.Module):
    """Upsamples by repeating rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.stem(x).repeat_interleave(2, 2).repeat_interleave(2, 3)).mean(1)


def test_repeated_rows_and_columns_are_no_channels() -> None:
    x = (torch.zeros(2, 3, 4, 4),)
    traced = apply("trace", Program(Repeating().eval(), x))
    coupled = apply("couple", traced)
    assert printed(coupled.graph_module) == printed(traced.graph_module)
    assert coupled.channels is not None
    assert [group.size for group in coupled.channels.groups] == [6, 4]
