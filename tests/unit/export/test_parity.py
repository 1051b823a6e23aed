import pytest
import torch
from torch import Tensor

from fxprune.errors import ParityError
from fxprune.export.parity import largest_gap

ONE = torch.tensor([1.0, 2.0])


def test_the_largest_gap_is_a_share_of_the_largest_value() -> None:
    assert largest_gap([ONE, ONE], [ONE, ONE + 2e-5], "file", "") == pytest.approx(1e-5, rel=0.02)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        ([ONE], "it has 1 outputs, the network 2"),
        ([ONE, ONE + 1e-3], "the largest difference is 5.0e-04 of the largest output"),
        ([ONE, ONE / 0], "the largest difference is"),
        ([ONE * float("nan"), ONE], "the largest difference is nan"),
    ],
    ids=("missing", "other", "infinite", "no number"),
)
def test_what_differs_is_refused(found: list[Tensor], why: str) -> None:
    with pytest.raises(ParityError, match="the file would not compute") as refused:
        largest_gap([ONE, ONE], found, "file", "look at it")
    assert why in str(refused.value)
