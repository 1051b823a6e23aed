"""An average that is written into the trained network reaches the executing channels alone."""

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fxprune import GatedModule, attach, instrument, shrink
from fxprune.errors import FxpruneWarning

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
SAYS = "an average was written into the gated network"


def step(gated: GatedModule, optimizer: torch.optim.Optimizer) -> None:
    gated(X).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def averaged(of: Callable[[nn.Module], nn.Module] = copy.deepcopy) -> tuple[Any, Any, Any]:
    """Train a network with an average; return both, and the optimiser."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    gated = instrument(model.train(), (X,), policy="random", seed=1)
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    attach(gated, optimizer)
    average = of(gated)
    for _ in range(6):
        step(gated, optimizer)
        update(average, gated)
    shown, trained = gated.best().channels, gated.trained.channels
    assert not torch.isin(shown, trained).all()
    return gated, average, optimizer


def update(average: Any, gated: GatedModule) -> None:
    if isinstance(average, AveragedModel):
        average.update_parameters(gated)
    else:
        with torch.no_grad():
            for mean, value in zip(average.parameters(), gated.parameters(), strict=True):
                mean.lerp_(value, 0.3)


def copied(gated: GatedModule, average: nn.Module) -> None:
    for value, mean in zip(gated.parameters(), average.parameters(), strict=True):
        value.data.copy_(mean.data)


def exchanged(gated: GatedModule, average: nn.Module) -> None:
    for value, mean in zip(gated.parameters(), average.parameters(), strict=True):
        kept = mean.data.clone()
        mean.data.copy_(value.data)
        value.data.copy_(kept)


def ema(gated: nn.Module) -> nn.Module:
    return AveragedModel(gated, multi_avg_fn=get_ema_multi_avg_fn(0.7))


@pytest.mark.parametrize("of", [copy.deepcopy, ema])
@pytest.mark.parametrize("write", [copied, exchanged])
def test_an_evaluation_of_what_was_written_is_warned_of_once(
    write: Callable[..., None], of: Callable[[nn.Module], nn.Module]
) -> None:
    gated, average, optimizer = averaged(of)
    gated.eval()  # before the values are written, as Lightning does
    write(gated, average)
    with pytest.warns(FxpruneWarning, match=SAYS):
        gated(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gated(X)
        gated.train()
        step(gated, optimizer)


@pytest.mark.parametrize("use", [shrink, lambda gated: gated.dense_state_dict()])
def test_an_export_of_what_was_written_is_warned_of(use: Callable[[GatedModule], object]) -> None:
    gated, average, _ = averaged()
    copied(gated, average)
    with pytest.warns(FxpruneWarning, match=SAYS):
        use(gated)


def test_a_training_that_goes_on_from_what_was_written_is_warned_of() -> None:
    gated, average, optimizer = averaged()
    copied(gated, average)
    with pytest.warns(FxpruneWarning, match=SAYS):
        step(gated, optimizer)


def hard(gated: GatedModule, average: nn.Module) -> None:
    copied(average, gated)  # type: ignore[arg-type]


@torch.no_grad()
def clamped(gated: GatedModule, average: nn.Module) -> None:
    for parameter in gated.parameters():
        parameter.clamp_(-0.1, 0.1)
    update(average, gated)


def restored(gated: GatedModule, average: nn.Module) -> None:
    exchanged(gated, average)
    exchanged(gated, average)


def settled(gated: GatedModule, average: nn.Module) -> None:
    gated.settle()
    copied(gated, average)


def loaded(gated: GatedModule, average: nn.Module) -> None:
    gated.load_state_dict(average.state_dict())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("write", [hard, clamped, restored, settled, loaded])
def test_what_writes_no_average_into_the_network_is_not_warned_of(
    write: Callable[..., None],
) -> None:
    gc.collect()  # the networks of other tests, which trained alike, look like what was averaged
    gated, average, optimizer = averaged()
    write(gated, average)
    gated.eval()
    gated(X)
    shrink(gated)
    gated.train()
    step(gated, optimizer)
    shrink(average)
