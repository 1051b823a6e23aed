"""top and keep_slots against what a few lines of plain Python say."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.errors import GateError
from fxprune.policies import keep_slots, top

Case = tuple[Layout, tuple[int, ...], list[float]]
scores_ = st.floats(width=32, allow_nan=True) | st.sampled_from([0.0, -0.0, 1.0, math.inf])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=5)))
    widths = tuple(draw(st.integers(1, size)) for size in sizes)
    scores = draw(st.lists(scores_, min_size=sum(sizes), max_size=sum(sizes)))
    return Layout(sizes), widths, scores


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...], Tensor, Tensor]:
    """Two selections of the same widths, each in any order within its groups."""
    layout, widths, _ = draw(cases())
    selections = []
    for _ in range(2):
        channels: list[int] = []
        for offset, size, width in zip(layout.offsets, layout.sizes, widths):
            channels += draw(st.permutations(range(offset, offset + size)))[:width]
        selections.append(torch.tensor(channels))
    return layout, widths, selections[0], selections[1]


@given(cases())
def test_top_takes_the_best_of_each_group(case: Case) -> None:
    layout, widths, scores = case
    expected = []
    for offset, size, width in zip(layout.offsets, layout.sizes, widths):
        by_score = sorted(
            range(offset, offset + size),
            key=lambda i: (-(-math.inf if math.isnan(scores[i]) else scores[i]), i),
        )
        expected += by_score[:width]
    chosen = top(torch.tensor(scores, dtype=torch.float32), layout, widths)
    assert chosen.dtype == torch.int64
    assert chosen.tolist() == expected


def test_top_by_hand() -> None:
    layout = Layout((3, 4))
    scores = torch.tensor([0.1, 0.9, 0.5, 7.0, -1.0, 7.0, 8.0])
    assert top(scores, layout, (2, 3)).tolist() == [1, 2, 6, 3, 5]
    assert top(scores, layout, (3, 1)).tolist() == [1, 2, 0, 6]


@given(pairs())
def test_stayers_keep_their_slots(case: tuple[Layout, tuple[int, ...], Tensor, Tensor]) -> None:
    layout, widths, current, chosen = case
    result = keep_slots(current, chosen, layout, widths)
    for new, old in zip(result.tolist(), current.tolist()):
        assert new == old or old not in chosen.tolist()
    parts = [torch.split(selection, list(widths)) for selection in (result, chosen)]
    for new, want in zip(*parts):
        assert new.sort().values.tolist() == want.sort().values.tolist()


@given(pairs())
def test_newcomers_come_in_the_order_in_which_they_were_chosen(
    case: tuple[Layout, tuple[int, ...], Tensor, Tensor],
) -> None:
    layout, widths, current, chosen = case
    before = set(current.tolist())
    result = keep_slots(current, chosen, layout, widths)
    assert [i for i in result.tolist() if i not in before] == [
        i for i in chosen.tolist() if i not in before
    ]


def test_keep_slots_by_hand() -> None:
    layout = Layout((4, 4))
    current, chosen = torch.tensor([3, 0, 2, 5, 4]), torch.tensor([1, 2, 3, 7, 6])
    kept = current.clone()
    assert keep_slots(current, chosen, layout, (3, 2)).tolist() == [3, 1, 2, 7, 6]
    assert torch.equal(current, kept)  # a new tensor
    assert keep_slots(current, current.flip(0)[[2, 3, 4, 0, 1]], layout, (3, 2)).tolist() == [
        3, 0, 2, 5, 4,
    ]  # fmt: skip


def test_selections_of_other_widths_are_refused() -> None:
    with pytest.raises(GateError) as error:
        keep_slots(torch.tensor([0, 1]), torch.tensor([0]), Layout((4,)), (1,))
    assert str(error.value) == (
        "1 channels cannot take the slots of 2\n"
        "  why  both selections must have 1 channels, the sum of the widths"
    )
