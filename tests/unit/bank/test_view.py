"""Views of another selection, gathered from packs and along dimensions, against slices."""

import pytest
import torch

from fxprune.bank import bank, view
from fxprune.bank.bank import take
from fxprune.bank.exchange import Selection
from fxprune.bank.view import View
from tests.support.law import choose
from tests.support.nets import BY_NAME


@pytest.mark.parametrize("large", [1 << 60, 0, 200], ids=["packed", "along", "both"])
@pytest.mark.parametrize("name", ["resnet_projection", "densenet", "grouped_few"])
def test_a_view_shows_another_selection_and_exchanges_nothing(
    name: str, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bank, view):
        monkeypatch.setattr(module, "LARGE", large)
    gated = BY_NAME[name].gated().train()
    gated.select(choose(gated.channels, gated.widths, 0))
    residents = Selection(gated.executing.clone(), gated.widths)
    tensors = {
        n: t
        for n, t in (*gated.named_parameters(), *gated.named_buffers())
        if n in gated.channels.axes
    }
    before, dense = {n: t.clone() for n, t in tensors.items()}, gated.dense_state_dict()
    thin = tuple(max(1, width - 1) for width in gated.widths)
    others = [choose(gated.channels, gated.widths, seed) for seed in (1, 2)]
    for shown in (residents, *others, choose(gated.channels, thin, 3)):
        found = View(gated.bank, residents, shown)(tensors)
        positions = gated.bank.positions(shown.channels, shown.widths)
        for n in tensors:
            assert torch.equal(found[n], take(dense[n], gated.bank.of(n, positions))), n
    assert all(torch.equal(tensors[n], before[n]) for n in tensors)
