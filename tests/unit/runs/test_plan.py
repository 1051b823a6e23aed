"""What a plan keeps of a network's example inputs is enough to make the network again."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import RunError
from fxprune.runs.plan import MOST_NUMBERS, Plan
from tests.support.law import gap

IMAGES, LENGTHS = torch.randn(2, 3, 4, 9), torch.tensor([9, 4])


class OfLengths(nn.Module):
    """Takes the mean over as many columns as an image has; of none there is no mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        y = self.b(self.a(x).relu())[..., : mask.shape[1]] * mask[:, None, None]
        return y.sum((2, 3)) / lengths[:, None]


@torch.no_grad()
def test_lengths_come_back(tmp_path: Path) -> None:
    gated = fxprune.instrument(OfLengths(), (IMAGES, LENGTHS)).eval()
    fxprune.save(gated, tmp_path / "net")
    loaded = fxprune.load(tmp_path / "net", OfLengths()).eval()
    assert gap(loaded(IMAGES, LENGTHS), gated(IMAGES, LENGTHS)) == 0
    assert torch.equal(loaded.inputs[1], LENGTHS)
    assert not loaded.inputs[0].any()
    assert fxprune.shrink(loaded)(IMAGES, LENGTHS).isfinite().all()


class Masked(OfLengths):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * mask[:, None]).sum((2, 3)) / mask.sum((1, 2))[:, None]


@pytest.mark.parametrize("width", [9, MOST_NUMBERS])
def test_masks_come_back_and_large_ones_in_their_likeness(width: int, tmp_path: Path) -> None:
    mask = torch.ones(2, 4, width, dtype=torch.bool)
    mask[:, 2:] = False
    gated = fxprune.instrument(Masked(), (torch.randn(2, 3, 4, width), mask))
    (_, kept) = Plan.of(gated).numbers or ()
    assert 0 < len(kept or ()) < 2**10
    fxprune.save(gated, tmp_path / "net")
    (_, found) = fxprune.load(tmp_path / "net", Masked()).inputs
    assert float(found.double().mean()) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(found, mask) or mask.numel() > MOST_NUMBERS


def test_no_numbers_of_a_large_input_are_refused(tmp_path: Path) -> None:
    inputs = torch.randn(2, 3, 4, MOST_NUMBERS), torch.ones(2, 4, MOST_NUMBERS, dtype=torch.bool)
    plan = dataclasses.replace(Plan.of(fxprune.instrument(Masked(), inputs)), numbers=(None, ()))
    with pytest.raises(RunError):
        plan.instrument(Masked(), tmp_path / "net")


def test_files_of_older_versions_have_no_numbers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    older = dataclasses.replace(Plan.of(fxprune.instrument(model, (IMAGES,))), numbers=None)
    assert older.instrument(model, tmp_path).inputs[0].shape == IMAGES.shape
    assert older == Plan.of(older.instrument(model, tmp_path))


@pytest.mark.parametrize(
    "numbers", [(None,), (None, (9,)), (None, (9, 2**70)), ((1, 2), (9, 4)), (None, None, None)]
)
def test_numbers_that_do_not_fit_are_refused(
    numbers: tuple[tuple[int, ...] | None, ...], tmp_path: Path
) -> None:
    plan = Plan.of(fxprune.instrument(OfLengths(), (IMAGES, LENGTHS)))
    with pytest.raises(RunError):
        dataclasses.replace(plan, numbers=numbers).instrument(OfLengths(), tmp_path / "net")
