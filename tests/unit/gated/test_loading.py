"""State dicts that may be of other channels: refused, or warned of."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune import GatedModule, instrument
from fxprune.errors import FxpruneWarning, GateError
from tests.support.nets import BY_NAME
from tests.support.training import build, train_step

NET = BY_NAME["resnet_projection"]


def trained(steps: int, gated: GatedModule, optimizer: torch.optim.Optimizer) -> None:
    for step in range(steps):
        train_step(gated, optimizer, NET, step)


def weights(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if "_extra_state" not in key}


@pytest.mark.parametrize("nested", [False, True])
def test_parameters_without_their_selection_are_refused(nested: bool) -> None:
    gated, optimizer = build(NET, policy="random")
    outer = nn.ModuleDict({"net": gated}) if nested else gated
    state = copy.deepcopy(outer.state_dict())
    trained(3, gated, optimizer)
    before = gated.dense_state_dict()
    nothing = dict.fromkeys((key for key in state if key.endswith("_extra_state")), object())
    for part in ({}, nothing):  # as torch.distributed.checkpoint loads one of several files
        with pytest.raises(GateError, match="no `_extra_state` of the gated network"):
            outer.load_state_dict(weights(state) | part, strict=False)
    after = gated.dense_state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    gated.settle()
    outer.load_state_dict(weights(outer.state_dict()), strict=False)


def averaged(gated: GatedModule, state: dict[str, Tensor]) -> dict[str, Tensor]:
    floats = {key: value for key, value in gated.state_dict().items() if value.is_floating_point()}
    return state | {key: state[key].lerp(value, 0.1) for key, value in floats.items()}


@pytest.mark.parametrize("how", ["averaged", "not copied"])
def test_values_of_another_time_are_warned_of(how: str) -> None:
    gated, optimizer = build(NET, policy="random")
    state = gated.state_dict() if how == "not copied" else copy.deepcopy(gated.state_dict())
    trained(3, gated, optimizer)
    if how == "averaged":
        state = averaged(gated, state)
    with pytest.warns(FxpruneWarning, match="is not what it was when the state dict was made"):
        gated.load_state_dict(state)


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("key", ["conv.weight", "fc.bias"])
def test_a_parameter_that_is_set_though_it_is_missing_is_warned_of(key: str, settled: bool) -> None:
    gated, optimizer = build(NET, policy="random")
    state = copy.deepcopy(gated.state_dict())
    trained(3, gated, optimizer)
    if settled:
        gated.settle()
    del state[key]
    with pytest.warns(FxpruneWarning, match=f"{key!r} is not in the state dict, and is set by it"):
        assert gated.load_state_dict(state, strict=False).missing_keys == [key]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_state_dict_that_was_cast_loads(dtype: torch.dtype) -> None:
    gated, optimizer = build(NET, policy="random")
    gated.float()
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in gated.state_dict().items()}
    gated.load_state_dict(state)
    gated.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    del optimizer


@pytest.mark.parametrize("part", ["conv", "blocks.0", "blocks.0.conv1"])
def test_a_part_alone_is_refused(part: str) -> None:
    gated, _ = build(NET, policy="random")
    inner = gated.get_submodule(part)
    with pytest.raises(GateError, match="of a gated network cannot load a state by itself"):
        inner.load_state_dict(inner.state_dict())


def test_a_layer_of_two_names_loads_with_the_network() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    gated = instrument(
        nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.ReLU(), shared, nn.Conv2d(4, 2, 1)),
        (torch.zeros(1, 3, 5, 5),),
    )
    gated.load_state_dict(copy.deepcopy(gated.state_dict()))


def test_a_shared_weight_is_not_missing_under_its_other_name() -> None:
    net = nn.Sequential(*(nn.Conv2d(n, m, 1) for n, m in ((3, 4), (4, 4), (4, 4), (4, 2))))
    net[2].weight = net[1].weight
    gated = instrument(net, (torch.zeros(1, 3, 5, 5),))
    state = copy.deepcopy(gated.state_dict())
    del state["1.weight"]  # as savers do that write each tensor once
    gated.load_state_dict(state, strict=False)


def test_assigned_tensors_are_not_shared() -> None:
    """Two networks that shared memory would exchange each other's channels."""
    (one, first), (two, second) = build(NET, policy="random"), build(NET, policy="random")
    trained(2, one, first)
    two.load_state_dict(one.state_dict(), assign=True)
    before = one.dense_state_dict()
    trained(3, two, second)
    after = one.dense_state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
