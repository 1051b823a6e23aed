"""Models that torch has wrapped: compiled, scripted, data parallel, made in inference mode."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxprune import instrument, shrink
from fxprune.errors import TraceError
from tests.support.law import at_random, choose, gap, zeroed

IMAGE = torch.randn(2, 3, 9, 9)


def layers() -> nn.Module:
    first = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()
    return nn.Sequential(*first, nn.Conv2d(8, 4, 1))


def _compiled_in_place(model: nn.Module, part: nn.Module) -> nn.Module:
    part.compile(backend="eager")
    return model


COMPILED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "the model": lambda model: torch.compile(model, backend="eager"),
    "the model, in place": lambda model: _compiled_in_place(model, model),
    "a layer": lambda model: nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:]),
    "a layer, in place": lambda model: _compiled_in_place(model, model[2]),
}


@pytest.mark.parametrize("part", COMPILED)
def test_what_torch_compile_has_wrapped_is_followed(part: str) -> None:
    torch.manual_seed(0)
    plain, x = layers().eval(), torch.randn(2, 3, 9, 9)
    wanted = plain(x)
    model = COMPILED[part](plain)
    gated = instrument(model, (x,), budget="keep=0.5", round_to=1).eval()
    assert gated.state_dict().keys() >= model.state_dict().keys()
    assert gated.cost.macs(gated.widths) < 0.5 * gated.cost.dense_macs
    assert torch.allclose(shrink(gated)(x), gated(x), atol=1e-6)
    gated.settle(choose(gated.channels, gated.channels.layout.sizes))
    assert torch.allclose(gated(x), wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, IMAGE)])
def test_torchscript_is_refused(make: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), make(layers()))
    with pytest.raises(TraceError, match="'1' is a TorchScript module"):
        instrument(model, (IMAGE,))


@pytest.mark.parametrize("inside", [False, True])
def test_inference_mode_changes_nothing(inside: bool) -> None:
    with torch.inference_mode(inside):
        model = nn.Sequential(layers(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    with torch.inference_mode():
        gated = instrument(model, (IMAGE,))
    assert [group.size for group in gated.channels.groups] == [8, 8, 4]
    gated.train()(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in gated.parameters())


@torch.no_grad()
def test_a_part_in_data_parallel_is_traced_through() -> None:
    """As on a machine without GPUs."""
    features = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3))
    model = nn.Sequential(nn.DataParallel(features), nn.ReLU(), nn.Conv2d(24, 4, 1))
    model = model.double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = instrument(model, (x,), round_to=1).eval()
    assert sorted(group.size for group in gated.channels.groups) == [16, 24]
    chosen = at_random(gated.channels, 1)
    gated.settle(chosen)
    assert gap(gated(x), shrink(gated)(x)) < 1e-12
    assert gap(gated(x), zeroed(model, gated, chosen)(x)) < 1e-12
