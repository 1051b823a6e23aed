"""Saliencies made comparable within and between groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxprune.channels.graph import Layout
from fxprune.policies.scale import per_group_l2, per_group_max

LAYOUT = Layout((3, 1, 4))
SELECTION = torch.tensor([2, 0, 3, 6, 4, 7])  # 2 of the first, 1 of the second, 3 of the third
values = st.lists(st.floats(0, 2.0**100, width=32), min_size=6, max_size=6)


def test_by_hand() -> None:
    saliency = torch.tensor([3.0, 4.0, 7.0, 2.0, 0.0, 8.0])
    largest, valid = per_group_max(saliency, SELECTION, LAYOUT)
    assert largest.tolist() == [0.75, 1.0, 1.0, 0.25, 0.0, 1.0]
    assert valid.all()
    norm, _ = per_group_l2(saliency, SELECTION, LAYOUT)
    root = 68**0.5
    torch.testing.assert_close(norm, torch.tensor([0.6, 0.8, 1.0, 2 / root, 0.0, 8 / root]))


def test_a_silent_group_gets_zeros() -> None:
    saliency = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0])
    for scaled in (per_group_max, per_group_l2):
        assert scaled(saliency, SELECTION, LAYOUT)[0].tolist() == [0, 0, 0, 1, 0, 0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out(bad: float) -> None:
    saliency = torch.tensor([3.0, bad, bad, 2.0, 0.0, 8.0])
    largest, valid = per_group_max(saliency, SELECTION, LAYOUT)
    assert largest.tolist() == [1.0, 0.0, 0.0, 0.25, 0.0, 1.0]
    assert valid.tolist() == [True, False, False, True, True, True]


@given(values)
def test_ranges(saliency: list[float]) -> None:
    value, _ = per_group_max(torch.tensor(saliency), SELECTION, LAYOUT)
    norm, _ = per_group_l2(torch.tensor(saliency), SELECTION, LAYOUT)
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        silent = max(saliency[part]) == 0
        assert value[part].max() == (0 if silent else 1)
        assert norm[part].square().sum().item() == pytest.approx(0 if silent else 1, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e37])
def test_squares_neither_vanish_nor_overflow(scale: float) -> None:
    saliency = scale * torch.tensor([3.0, 4.0, 7.0, 2.0, 1.0, 2.0])
    norm, valid = per_group_l2(saliency, SELECTION, LAYOUT)
    assert valid.all()
    expected = torch.tensor([0.6, 0.8, 1.0, 2 / 3, 1 / 3, 2 / 3])
    torch.testing.assert_close(norm, expected)


def test_half_precision_is_taken_as_it_comes() -> None:
    saliency = torch.tensor([3.0, 4.0, 7.0, 2.0, 0.0, 8.0], dtype=torch.float16)
    value, _ = per_group_max(saliency, SELECTION, LAYOUT)
    assert value.dtype == torch.float32
    assert value[:2].tolist() == [0.75, 1.0]
