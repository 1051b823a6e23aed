"""Weights that a hook computes of other parameters: old weight_norm, masks of nn.utils.prune."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

from fxprune import attach, instrument, reference_of, shrink

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def normed(dim: int | None = 0) -> nn.Module:
    return nn.Sequential(
        weight_norm(nn.Conv2d(3, 16, 3), dim=dim), nn.ReLU(),
        weight_norm(nn.Conv2d(16, 16, 3)), nn.ReLU(), nn.Conv2d(16, 4, 1),
    )  # fmt: skip


def masked() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(200, 4),
    )  # fmt: skip
    prune.ln_structured(model[0], "weight", 0.25, n=2, dim=0)
    prune.random_unstructured(model[3], "weight", 0.3)
    prune.l1_unstructured(model[3], "weight", 0.3)  # on top of the one before
    prune.l1_unstructured(model[3], "bias", 0.3)
    prune.l1_unstructured(model[6], "weight", 0.3)
    return model


@pytest.mark.sampled(2)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize(
    "make",
    [normed, lambda: normed(None), lambda: normed(1), masked],
    ids=["0", "None", "1", "masks"],
)
def test_trained_copied_shrunk_and_referred_to(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    gated = instrument(model.train(), (X,), policy="random")
    optimizer = torch.optim.SGD(gated.parameters(), 0.05, momentum=0.9)
    attach(gated, optimizer)
    for _ in range(3):
        gated(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    gated.eval()
    wanted = gated(X).detach()
    again = instrument(make().train(), (X,), policy="random")
    again.load_state_dict(gated.state_dict())
    for network in (shrink(gated), copy.deepcopy(gated), copy.deepcopy(shrink(gated)), again):
        torch.testing.assert_close(network.eval()(X), wanted, rtol=0, atol=1e-6)
    reference = reference_of(gated, model).eval()
    torch.testing.assert_close(reference(X), wanted, rtol=0, atol=1e-6)


class Bounded(nn.Conv2d):
    """Keeps the filters of its weight short, whenever it runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


def test_a_weight_that_forward_bounds() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), Bounded(16, 12, 3), nn.Conv2d(12, 4, 1))
    nn.init.ones_(model[2].weight)
    gated = instrument(model, X, policy="random")
    gated.train()(X).square().mean().backward()
    with torch.no_grad():
        wanted = gated.eval()(X)
        assert (gated.get_parameter("2.weight").flatten(1).norm(dim=1) < 0.5001).all()
        for network in (shrink(gated), reference_of(gated, model)):
            torch.testing.assert_close(network(X), wanted, rtol=0, atol=1e-6)
