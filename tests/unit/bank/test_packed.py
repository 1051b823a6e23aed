"""The two ways in which channels travel, packs and sparse swaps, against copying slice by slice."""

import pytest
import torch

from fxprune import GatedModule, attach
from fxprune.bank import bank
from fxprune.bank.bank import take
from fxprune.bank.exchange import Selection
from fxprune.gated import optimizer_state
from tests.support.law import choose
from tests.support.nets import BY_NAME, Net

WAYS = {"packs": 1 << 60, "moves": 0, "both": 200}

every_way = pytest.mark.parametrize("large", WAYS.values(), ids=WAYS)
every_format = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"]
)


def nets(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("net", [BY_NAME[name] for name in names], ids=names)


def assert_loaded(gated: GatedModule, wanted: dict[str, torch.Tensor]) -> None:
    places = gated.bank.positions(gated.executing, gated.widths)
    for name, tensor in (*gated.named_parameters(), *gated.named_buffers()):
        if name in gated.channels.axes:
            assert torch.equal(tensor, take(wanted[name], gated.bank.of(name, places))), name
    for name, tensor in gated.dense_state_dict().items():
        assert torch.equal(tensor, wanted[name]), name


@pytest.mark.sampled(8)
@every_way
@every_format
@nets("resnet_projection", "densenet", "mobilenet", "vgg", "grouped_few", "raw", "tied")
def test_swaps(
    net: Net, memory_format: torch.memory_format, large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bank, "LARGE", large)
    model = net.model()
    gated = net.gated().to(memory_format=memory_format).train()
    wanted = model.state_dict()
    formats = {name: p.stride()[-1:] for name, p in gated.named_parameters()}
    for seed in range(4):
        gated.select(choose(gated.channels, gated.widths, seed))
        assert_loaded(gated, wanted)
    assert {name: p.stride()[-1:] for name, p in gated.named_parameters()} == formats
    thin = tuple(max(1, width - 1) for width in gated.widths)
    gated.select(choose(gated.channels, thin, 0))  # other widths, then swaps at those
    gated.select(choose(gated.channels, thin, 1))
    assert_loaded(gated, wanted)


@every_way
def test_a_frozen_parameter_has_no_state_to_move(
    large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packs hold all parameters, but only some of them have a momentum."""
    monkeypatch.setattr(bank, "LARGE", large)
    net = BY_NAME["resnet_projection"]
    gated = net.gated().train()
    for number, parameter in enumerate(gated.parameters()):
        parameter.requires_grad = number % 3 > 0
    optimizer = torch.optim.SGD((p for p in gated.parameters() if p.requires_grad), 0, 0.9)
    gated.track(optimizer)
    gated(*net.inputs()).square().sum().backward()
    optimizer.step()
    before = {key: value.clone() for key, value in optimizer.state_dict()["state"][0].items()}
    first = Selection(gated.executing.clone(), gated.widths)
    gated.select(choose(gated.channels, gated.widths, 1))
    changed = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert not torch.equal(changed, before["momentum_buffer"])
    gated.select(first)
    assert torch.equal(
        optimizer.state_dict()["state"][0]["momentum_buffer"], before["momentum_buffer"]
    )


POLICIES = ("cucb", "cucb{saliency=sample}", "magnitude", "bn_scale", "random", "utility{warmup=0}")


@pytest.mark.sampled(6)
@nets("resnet_projection", "densenet", "mobilenet")
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_no_step_waits_for_the_device(
    net: Net, policy: str, kind: type[torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On meta tensors item(), cpu(), nonzero() and indexing by masks raise."""
    monkeypatch.setattr(optimizer_state, "beginnings", lambda *_: {})  # asked once for each state
    gated = net.gated(policy=policy).train()
    gated.to("meta")
    optimizer = kind(gated.parameters(), lr=0.1)
    attach(gated, optimizer)
    for _ in range(3):
        before = gated.executing
        optimizer.zero_grad()
        gated(*(x.to("meta") for x in net.inputs())).sum().backward()
        optimizer.step()
        assert gated.executing.is_meta
        assert gated.executing is not before
