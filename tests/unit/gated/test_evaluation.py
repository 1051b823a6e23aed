"""Evaluation is a view: whatever a forward shows, parameters, gradients and state stay."""

import copy
import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument, shrink
from fxprune.bank.view import View
from fxprune.errors import GateError
from tests.support.law import gap
from tests.support.nets import BY_NAME
from tests.support.oracle import loss_of
from tests.support.training import sgd, train_step

NET = BY_NAME["resnet_projection"]
POLICIES = ["random", "cucb{c=1}", "utility{warmup=2,reallocate=2}", "balance{reallocate=2}"]
FALL = {"schedule": "linear{begin=0.2,end=0.9}", "steps": 12}


def build(
    policy: str = "random", schedule: bool = False
) -> tuple[GatedModule, torch.optim.Optimizer]:
    gated = instrument(NET.model().train(), NET.inputs(), policy=policy, budget="keep=0.4")
    optimizer = sgd(gated.parameters())
    attach(gated, optimizer, **(FALL if schedule else {}))
    return gated, optimizer


def by_method(gated: nn.Module, mode: bool) -> None:
    gated.train(mode)


def by_attribute(gated: nn.Module, mode: bool) -> None:
    """As Lightning restores modes after a validation."""
    for module in gated.modules():
        module.training = mode


modes = pytest.mark.parametrize("to", [by_method, by_attribute])
To = Callable[[nn.Module, bool], None]


def bits(gated: GatedModule) -> dict[str, Tensor]:
    state = {f"own/{name}": p for name, p in gated.named_parameters()}
    return {name: t.detach().clone() for name, t in (state | gated.training_state()).items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.sampled(1)
@modes
@pytest.mark.parametrize(
    ("policy", "schedule"),
    [("random", True), *(pytest.param(p, False, marks=pytest.mark.slow) for p in POLICIES)],
)
def test_a_validation_anywhere_changes_nothing(policy: str, schedule: bool, to: To) -> None:
    """Between forward and backward, backward and step, and in the midst of an accumulation."""
    looked, plain = build(policy, schedule), build(policy, schedule)

    def look(gated: GatedModule) -> None:
        to(gated, False)
        shown = gated(*NET.inputs())
        torch.testing.assert_close(shown, shrink(gated)(*NET.inputs()))
        to(gated, True)

    for step in range(6):
        for (gated, optimizer), looks in ((looked, True), (plain, False)):
            optimizer.zero_grad()
            loss = loss_of(gated, NET, step)
            if looks:
                look(gated)
            loss.backward()
            if looks:
                look(gated)
            loss_of(gated, NET, step + 9).backward()
            optimizer.step()
            if looks:
                look(gated)
        assert looked[0].widths == plain[0].widths
    assert same(bits(looked[0]), bits(plain[0]))


@pytest.mark.sampled(2)
@modes
@pytest.mark.parametrize("policy", POLICIES)
def test_the_parameters_are_the_training_selections_in_any_mode(policy: str, to: To) -> None:
    gated, optimizer = build(policy)
    for step in range(5):
        train_step(gated, optimizer, NET, step)
    before = {name: t.clone() for name, t in gated.state_dict().items()}
    parameters, executing = [*gated.parameters()], gated.executing
    to(gated, False)
    assert same(gated.state_dict(), before)
    gated(*NET.inputs())
    assert same(gated.state_dict(), before)
    assert all(one is two for one, two in zip(gated.parameters(), parameters, strict=True))
    to(gated, True)
    assert torch.equal(gated.executing, executing)


def test_input_gradients_of_an_evaluation_stay_right() -> None:
    gated, optimizer = build()
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    (images,) = NET.inputs()
    wanted, found = (images.clone().requires_grad_() for _ in range(2))
    shrink(gated).eval()(wanted).square().sum().backward()
    gated.eval()
    loss = gated(found).square().sum()
    gated.train()
    train_step(gated, optimizer, NET, 4)
    loss.backward()
    torch.testing.assert_close(found.grad, wanted.grad)


def test_parameters_get_the_gradients_of_an_evaluation() -> None:
    """Those of the channels that they hold: the others rest."""
    gated, optimizer = build()
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    dense = gated.selection()
    places = gated.bank.positions(gated.executing, gated.widths)
    compact = shrink(gated)
    for network in (gated.eval(), compact.eval()):
        network.zero_grad()
        network(*NET.inputs()).square().sum().backward()
    wanted = dict(compact.named_parameters())
    checked = 0
    for name, parameter in gated.named_parameters():
        if name not in dense:
            continue
        full = torch.zeros(gated.channels.shapes[name], dtype=torch.float64)
        index = [dense[name].get(d, torch.arange(n)) for d, n in enumerate(full.shape)]
        full[torch.meshgrid(*index, indexing="ij")] = wanted[name].grad
        own = gated.bank.of(name, places)
        index = [own.get(d, torch.arange(n)) for d, n in enumerate(full.shape)]
        expected = full[torch.meshgrid(*index, indexing="ij")]
        torch.testing.assert_close(parameter.grad, expected)
        checked += int(expected.any())
    assert checked > 1


def test_a_norm_that_measures_in_an_evaluation_keeps_what_it_measured() -> None:
    gated, optimizer = build()
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    compact = shrink(gated)
    for network in (gated, compact):
        network.eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        network(*NET.inputs(8, seed=4))
    wanted = dict(compact.named_buffers())
    found = dict(shrink(gated).named_buffers())
    assert wanted.keys() == found.keys()
    for name, buffer in wanted.items():
        torch.testing.assert_close(found[name], buffer)


@pytest.mark.slow
@pytest.mark.parametrize("saved", [by_method, by_attribute])
@pytest.mark.parametrize("in_training", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dense", [False, True], ids=["its widths", "other widths"])
@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_dict_is_the_same_in_any_mode(
    policy: str,
    schedule: bool,
    dense: bool,
    nested: bool,
    in_training: tuple[bool, bool],
    saved: To,
) -> None:
    """Loads into a new network, or into one that has trained all of its channels."""

    def made() -> tuple[GatedModule, torch.optim.Optimizer, nn.Module]:
        gated, optimizer = build(policy, schedule)
        return gated, optimizer, nn.ModuleDict({"net": gated}) if nested else gated

    gated, optimizer, outer = made()
    for step in range(4):
        train_step(gated, optimizer, NET, step)
    saved(outer, in_training[0])
    state = copy.deepcopy(outer.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    saved(outer, True)
    assert all(isinstance(value, Tensor) for value in state.values())

    again, other, holder = made()
    if dense:
        again.spend(1.0)
        train_step(again, other, NET, 99)
        again.spend(1.0)
    saved(holder, in_training[1])
    holder.load_state_dict(state, strict=True)
    other.load_state_dict(moments)
    saved(holder, True)
    assert same(bits(again), bits(gated))
    for step in range(4, 8):
        train_step(gated, optimizer, NET, step)
        train_step(again, other, NET, step)
    assert same(bits(again), bits(gated))


class RootParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.b = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() * self.scale)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_other_widths_load_with_a_parameter_on_the_root(share: float) -> None:
    def made() -> GatedModule:
        return instrument(RootParameter(), (torch.zeros(2, 3, 8, 8),), budget="keep=0.5")

    one, two = made(), made()
    one.spend(share)
    two.load_state_dict(one.state_dict())
    assert two.widths == one.widths
    assert same(bits(one), bits(two))


def test_what_is_written_into_a_state_dict_lands() -> None:
    gated, _ = build()
    for value in gated.eval().state_dict().values():
        if value.is_floating_point():
            value.fill_(0.25)
    executes = dict(gated.train().named_parameters())
    assert all((value == 0.25).all() for value in executes.values())


def test_files_of_before_still_load() -> None:
    """Their extra state is a dict of tensors."""
    gated, optimizer = build("utility{warmup=2,reallocate=2}")
    for step in range(4):
        train_step(gated, optimizer, NET, step)
    state = gated.state_dict()
    state["_extra_state"] = gated.training_state()
    again, _ = build("utility{warmup=2,reallocate=2}")
    again.load_state_dict(state)
    assert same(bits(again), bits(gated))


@pytest.mark.parametrize("name", ["mobilenet", "shuffle_split"])
def test_sizes_that_are_written_down_follow_other_widths(name: str) -> None:
    """A depthwise layer's groups, a view's channels: in training all channels, then the budget."""
    net = BY_NAME[name]
    gated = net.gated(policy="cucb", budget="keep=0.5").train()
    gated.spend(1.0)
    trained = gated.widths
    assert gated.eval().widths != trained
    with torch.no_grad():
        found, wanted = gated(*net.inputs(3, seed=1)), shrink(gated)(*net.inputs(3, seed=1))
    assert gap(wanted, found) < 1e-12
    assert gated.train().widths == trained
    gated(*net.inputs(3, seed=2))


@torch.no_grad()
def _equals_the_compact_network(gated: GatedModule, x: Tensor) -> None:
    assert gap(shrink(gated)(x), gated(x)) < 1e-6


@pytest.mark.sampled(2)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["resnet_projection", "mobilenet", "shuffle_split"])
def test_what_stands_in_is_kept_and_follows_all_that_is_written(
    name: str, layout: torch.memory_format
) -> None:
    """Also past the counts of versions, as averages put their weights in place."""
    net = BY_NAME[name]
    gated = instrument(net.model().train(), net.inputs(), policy="random", budget="keep=0.5")
    gated = gated.to(memory_format=layout)
    optimizer = sgd(gated.parameters())
    attach(gated, optimizer)
    (x,) = net.inputs()
    for step in range(3):
        gated(x).square().mean().backward()
        optimizer.step()
        gated.train(False)
        _equals_the_compact_network(gated, x)
        first, again = _standing_in(gated, x), _standing_in(gated, x)
        assert all(one is other for one, other in zip(first, again, strict=True))
        for parameter in gated.parameters():
            parameter.data.mul_(1.5)
        _equals_the_compact_network(gated, x)
        for parameter in gated.parameters():
            parameter.data = parameter.data * 0.5
        _equals_the_compact_network(gated, x)
        gated.bank.dense[gated.channels.params_terms[0].name].mul_(1.0)
        gated.load_state_dict(gated.state_dict())
        _equals_the_compact_network(gated, x)
        module = next(m for m in gated.modules() if isinstance(m, nn.BatchNorm2d))
        module.train(step % 2 == 0)  # measures
        gated(x)
        module.eval()
        _equals_the_compact_network(gated, x)
        gated.train()


@torch.no_grad()
def _standing_in(gated: GatedModule, x: Tensor) -> list[Tensor]:
    """What forwards of evaluation have in the places of parameters."""
    seen: list[Tensor] = []
    layers = [m for m in gated.modules() if isinstance(m, nn.Conv2d)]
    handles = [m.register_forward_pre_hook(lambda m, _: seen.append(m.weight)) for m in layers]
    gated(x)
    for handle in handles:
        handle.remove()
    return seen


def test_an_evaluation_plans_only_what_it_shows() -> None:
    gated, optimizer = build()
    train_step(gated, optimizer, NET, 0)
    gc.collect()
    others = _views()
    gated.eval()
    with torch.no_grad():
        gated(*NET.inputs())
    assert _views() == others
    gated(*NET.inputs())
    assert _views() == others + 1


def _views() -> int:
    return sum(type(item) is View for item in gc.get_objects())


@torch.no_grad()
def test_the_parameters_execute_where_the_training_selection_is_shown() -> None:
    gated, _ = build()
    gated.eval()
    shown, own = _standing_in(gated, *NET.inputs()), {id(p) for p in gated.parameters()}
    assert {id(tensor) for tensor in shown} <= own
    _equals_the_compact_network(gated, *NET.inputs())


def test_what_is_kept_is_not_what_a_graph_holds() -> None:
    gated, optimizer = build()
    for step in range(3):
        train_step(gated, optimizer, NET, step)
    gated.eval()
    (x,) = NET.inputs()
    loss = gated(x).square().mean()
    with torch.inference_mode():
        gated(x)
    with torch.no_grad():
        for parameter in gated.parameters():
            parameter.data.mul_(2.0)
        gated(x)
    loss.backward()
    parameters = dict(gated.named_parameters())
    torch.func.functional_call(gated, parameters, (x,)).sum().backward()
    with torch.no_grad():
        other = {name: 0.5 * p for name, p in parameters.items()}
        found = torch.func.functional_call(gated, other, (x,))
        for name, parameter in parameters.items():
            parameter.copy_(other[name])
        torch.testing.assert_close(gated(x), found)
        mapped = torch.vmap(gated)(x[:, None])
    torch.testing.assert_close(mapped[:, 0], gated(x).detach())


def test_threads_may_evaluate_one_network() -> None:
    gated, optimizer = build("cucb{c=1}")
    for step in range(4):
        train_step(gated, optimizer, NET, step)
    gated.eval()
    wanted, before, wrong = gated(*NET.inputs()), bits(gated), []

    def evaluate() -> None:
        for _ in range(20):
            with torch.no_grad():
                if not torch.equal(gated(*NET.inputs()), wanted):
                    wrong.append(threading.current_thread().name)

    threads = [threading.Thread(target=evaluate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert same(bits(gated), before)


def test_an_export_past_the_forward_is_refused_until_the_channels_are_settled() -> None:
    """torch.export runs the graph of a GraphModule itself, on the parameters as they are."""
    gated, optimizer = build()
    for step in range(2):
        train_step(gated, optimizer, NET, step)
    gated.eval()
    inputs = NET.inputs()
    with pytest.raises(GateError, match=r"cannot be exported\n.*\n  do   export fxprune\.shrink"):
        torch.export.export(gated, inputs, strict=False)
    gated.settle()
    program = torch.export.export(gated, inputs, strict=False)
    torch.testing.assert_close(program.module()(*inputs), gated(*inputs))


def test_a_network_that_chooses_channels_is_not_shared_by_processes() -> None:
    gated, _ = build()
    with pytest.raises(GateError, match="cannot be shared by processes"):
        nn.ModuleDict({"net": gated}).share_memory()
    settled, _ = build()
    settled.settle()
    settled.share_memory()


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_the_first_forward_of_an_evaluation_can_be_traced() -> None:
    """As TensorBoard does for its graph; the check runs a second forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = torch.randn(2, 3, 9, 9)
    gated = instrument(model.train(), (x,), policy="random")
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    attach(gated, optimizer)
    gated(x).square().mean().backward()
    optimizer.step()
    traced = torch.jit.trace(gated.eval(), x)
    assert torch.equal(traced(x + 1), gated(x + 1))
