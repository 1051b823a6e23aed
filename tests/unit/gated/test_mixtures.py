"""A copy averaged by position with networks that trained apart is warned of when it is used."""

import copy

import pytest
import torch

from fxprune import GatedModule, shrink
from fxprune.errors import FxpruneWarning
from tests.support.nets import BY_NAME
from tests.support.training import build, train_step

NET = BY_NAME["resnet_projection"]
SAYS = "averaged with a network that trained apart"


def trained(steps: int) -> GatedModule:
    gated, optimizer = build(NET, policy="random")
    for step in range(steps):
        train_step(gated, optimizer, NET, step)
    return gated


@torch.no_grad()
def soup(*networks: GatedModule) -> GatedModule:
    mixed = copy.deepcopy(networks[0])
    for mean, *values in zip(*(n.parameters() for n in (mixed, *networks)), strict=True):
        mean.copy_(torch.stack(values).mean(0))
    return mixed


@pytest.mark.parametrize("many", [2, 3])
def test_a_soup_is_warned_of_once(many: int) -> None:
    networks = [trained(3 + number) for number in range(many)]
    mixed = soup(*networks)
    with pytest.warns(FxpruneWarning, match=SAYS):
        mixed.eval()
    shrink(mixed)  # a second warning would be an error


@pytest.mark.filterwarnings("error")
def test_what_is_none_is_not_warned_of() -> None:
    """An average of one network beside another one, a copy, and one that was written to."""
    gated, other = trained(3), trained(5)
    average, kept = copy.deepcopy(gated), copy.deepcopy(gated)
    before = average.executing.clone()
    with torch.no_grad():
        for mean in average.parameters():
            mean.add_(0.01 * torch.randn_like(mean))
    for network in (gated, other, average, kept):
        shrink(network.eval())
    assert torch.equal(before, kept.train().executing)
