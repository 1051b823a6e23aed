"""Costs against real networks that are built at the widths in question."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import instrument
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Factor, Term
from fxprune.errors import GateError

SIZES = (6, 9)


def net(a: int, b: int) -> nn.Module:
    """Two groups; a concatenation, so that one length depends on both."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(3, a, 3, padding=1, bias=False)
            self.two = nn.Conv2d(a, b, 1)
            self.head = nn.Linear((a + b) * 4 + 5, 7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.one(x)
            both = torch.cat([first, self.two(first)], 1)
            pooled = nn.functional.adaptive_avg_pool2d(both, 2).flatten(1)
            out: torch.Tensor = self.head(nn.functional.pad(pooled, (0, 5)))
            return out

    return Net()


A, B = Factor(0, ((0, 1),)), Factor(0, ((1, 1),))
FLAT = Factor(5, ((0, 4), (1, 4)))
COST = CostModel(
    macs_terms=(
        Term("one", 8 * 8 * 3 * 9, (A,)),
        Term("two", 8 * 8, (A, B)),
        Term("head", 7, (FLAT,)),
    ),
    params_terms=(
        Term("one.weight", 27, (A,)),
        Term("two.weight", 1, (B, A)),
        Term("two.bias", 1, (B,)),
        Term("head.weight", 7, (FLAT,)),
        Term("head.bias", 7, ()),
    ),
    sizes=SIZES,
)


@pytest.mark.parametrize("widths", [SIZES, (1, 1), (3, 9), (6, 2)])
def test_macs_are_half_of_what_torch_counts(widths: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counter:
        net(*widths)(torch.zeros(1, 3, 8, 8))
    assert COST.macs(widths) * 2 == counter.get_total_flops()


@pytest.mark.parametrize("widths", [SIZES, (1, 1), (3, 9), (6, 2)])
def test_params_are_those_of_the_network_built_at_the_widths(widths: tuple[int, int]) -> None:
    assert COST.params(widths) == sum(p.numel() for p in net(*widths).parameters())


def test_dense_costs() -> None:
    assert COST.dense_macs == COST.macs(SIZES)
    assert COST.dense_params == COST.params(SIZES)


def test_a_group_that_counts_twice_in_a_factor_is_added_up() -> None:
    twice = Factor(0, ((0, 2), (0, 3)))
    assert CostModel((Term("t", 1, (twice,)),), (), (4,)).macs((3,)) == 15


def test_without_terms_or_groups() -> None:
    assert CostModel((), (), (4,)).macs((2,)) == 0
    assert CostModel((Term("t", 5, ()),), (), ()).macs(()) == 5


@given(st.tuples(st.integers(1, 6), st.integers(1, 9)), st.integers(0, 1))
def test_one_channel_more_never_costs_less(widths: tuple[int, int], group: int) -> None:
    wider = tuple(min(w + (g == group), SIZES[g]) for g, w in enumerate(widths))
    assert COST.macs(wider) >= COST.macs(widths)
    assert COST.params(wider) >= COST.params(widths)


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        ((6,), "1 widths were given for 2 channel groups"),
        ((0, 9), "channel group 0 cannot have width 0\n"),
        ((6, 10), "channel group 1 cannot have width 10\n  why  it has 9 channels"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: tuple[int, ...], text: str) -> None:
    with pytest.raises(GateError) as error:
        COST.macs(widths)
    assert str(error.value).startswith(text)


class OfAList(nn.Module):
    """Takes a list of images [C, H, W], as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tail = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = self.tail(self.stem(torch.stack(images)).relu())
        return out


def test_images_in_a_list_have_no_batch_of_their_own() -> None:
    images = [torch.zeros(3, 5, 7)]
    gated = instrument(OfAList(), (images,), "random", "keep=0.5", round_to=1)
    for widths, channels in (((8,), 8), ((4,), 4)):
        assert gated.cost.macs(widths) == 5 * 7 * (3 * channels + channels * 4)
