"""Policies, schedules and op rules in the user's own code, beside the package."""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.budget.schedule import Schedule
from fxprune.channels.graph import Layout
from fxprune.errors import OptionError, RunError
from fxprune.policies import Policy
from fxprune.policies.base import Observes, State, mark_seen, unseen_first, unseen_last
from fxprune.policies.scale import per_group_max
from fxprune.rules.base import Call, Context, Family, Rule
from fxprune.runs.plan import Plan
from tests.support.cli import run
from tests.support.law import gap, zeroed

IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))

LIBRARY = torch.library.Library("fxprune_own", "DEF")
for op in ("ruled", "broken", "even"):
    LIBRARY.define(f"{op}(Tensor x) -> Tensor", tags=(torch.Tag.pointwise,) * (op == "even"))
    LIBRARY.impl(op, torch.exp, "CompositeExplicitAutograd")


@dataclass(frozen=True)
class Latest(Policy):
    """The channels whose last saliency was highest."""

    keys: ClassVar[tuple[str, ...]] = ("latest",)

    share: float = 1.0

    @property
    def observes(self) -> Observes:
        return "batch"

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        state = super().start(layout, prior, seed)
        return state | {"last": torch.zeros_like(state["prior"])}

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        reward, valid = per_group_max(saliency, selection, layout)
        state["last"].index_copy_(0, selection, self.share * reward)
        mark_seen(state, selection, valid)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        del layout
        return (unseen_first if explore else unseen_last)(state["last"], state)


@dataclass(frozen=True)
class Square(Schedule):
    """Falls with the square of what is left."""

    keys: ClassVar[tuple[str, ...]] = ("own_square",)

    def left(self, way: float) -> float:
        return (1 - way) ** 2


class Ruled(Rule):
    """The labels stay where they are."""

    keys: ClassVar[tuple[str, ...]] = ("fxprune_own::ruled",)

    def __call__(self, context: Context, call: Call) -> None:
        context.carry(call.out, context.of(call["x"]))


class Broken(Rule):
    """Says, of labels that are right, another thing for each channel that a network has."""

    keys: ClassVar[tuple[str, ...]] = ("fxprune_own::broken",)

    def __call__(self, context: Context, call: Call) -> None:
        labels = context.along(call["x"], 1)
        assert labels is not None
        match len(labels):
            case 16:
                call["self"]
            case 12:
                context.carry(call.out, [Family(1, labels[1:])])
            case 8:
                context.meet(labels, labels[1:])
            case _:
                context.carry(call.out, labels)  # type: ignore[arg-type]


class Through(nn.Module):
    def __init__(self, op: str, width: int = 16) -> None:
        super().__init__()
        self.first, self.last, self.op = nn.Conv2d(3, width, 3), nn.Conv2d(width, 8, 3), op

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(getattr(torch.ops.fxprune_own, self.op)(self.first(x)))
        return out


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))


def trained(policy: str | Policy, schedule: str | None = None) -> fxprune.GatedModule:
    gated = fxprune.instrument(net(), (IMAGES,), policy, "keep=0.5")
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    fxprune.attach(gated, optimizer, schedule=schedule, steps=schedule and 4)
    for _ in range(4):
        gated(IMAGES).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return gated


@pytest.mark.parametrize("policy", ["latest{share=0.5}", Latest(share=0.5)], ids=["text", "object"])
def test_a_policy_that_is_imported_is_known_by_name(policy: str | Policy, tmp_path: Path) -> None:
    gated = trained(policy, "own_square{end=0.5}")
    fxprune.save(gated, tmp_path / "net.safetensors")
    again = fxprune.load(tmp_path / "net.safetensors", net())
    assert again.settings.policy == Latest(share=0.5)
    assert torch.equal(again.eval()(IMAGES), gated.eval()(IMAGES))


def test_a_policy_that_is_not_imported_is_asked_for(tmp_path: Path) -> None:
    plan = dataclasses.replace(Plan.of(trained("latest")), policy="lost")
    with pytest.raises(RunError, match=r"unknown policy 'lost'\n(.*\n)*  do   import the code"):
        plan.instrument(net(), tmp_path)


@dataclass(frozen=True)
class Unnamed(Latest):
    """Has its parent's name alone."""


@dataclass(frozen=True)
class Faulty(Latest):
    """Does one thing wrong, that which it is told to."""

    keys: ClassVar[tuple[str, ...]] = ("faulty",)

    fault: str = ""

    @property
    def observes(self) -> Observes:
        return "all" if self.fault == "observes" else "batch"  # type: ignore[return-value]

    @property
    def warmup(self) -> int:
        return -1 if self.fault == "warmup" else 0

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        state = super().start(layout, prior, seed)
        if self.fault == "start":
            return None  # type: ignore[return-value]
        return {"last": state["last"]} if self.fault == "prior" else state

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        if self.fault == "observe":
            state["mean"].add_(1)
        super().observe(state, layout, selection, saliency)

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        found = super().score(state, layout, explore)
        wrong = {"short": found[1:], "double": found.double(), "none": None}
        return wrong.get(self.fault, found)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (Unnamed(), 'has no name of its own\n.*\n  do   give the class one: keys = \\("unnamed",'),
        (Latest, r"do   give an object of it: Latest\(\)"),
        (Faulty(fault="observes"), "the policy 'faulty' observes 'all'"),
        (Faulty(fault="warmup"), "warmup of the policy 'faulty' is -1"),
        (Faulty(fault="start"), r"start\(\) returns None\n  do   return a dict of tensors"),
        (Faulty(fault="prior"), "the state has as prior None"),
        (Faulty(fault="observe"), r"observe\(\) of .* KeyError\n  at .*test_own_plug_ins.py:\d+"),
        (Faulty(fault="short"), r"score\(\) returns torch.float32 of shape \(15,\)"),
        (Faulty(fault="double"), r"score\(\) returns torch.float64 of shape \(16,\)"),
        (Faulty(fault="none"), r"score\(\) returns None\n  do   return a tensor, torch.float32 of"),
    ],
)
def test_a_policy_that_errs_is_refused_by_name(policy: Policy, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        trained(policy)


@pytest.mark.parametrize("left", [None, 1.5, float("nan"), torch.tensor(1.0), KeyError("x")])
def test_a_schedule_that_errs_is_refused_by_name(left: object) -> None:
    @dataclass(frozen=True)
    class Wrong(Schedule):
        def left(self, way: float) -> float:
            if isinstance(left, Exception):
                raise left from ValueError(way)
            return left  # type: ignore[return-value]

    with pytest.raises(OptionError, match=r"the budget schedule '?Wrong"):
        Wrong().plan(0.5, 10)


@torch.no_grad()
@pytest.mark.parametrize("op", ["ruled", "even"])
def test_an_op_with_a_rule_of_ones_own_keeps_the_law(op: str) -> None:
    model = Through(op)
    gated = fxprune.instrument(model, (IMAGES,), budget="keep=0.5").eval()
    assert gated.widths == (8,)
    assert gap(zeroed(model, gated, gated.best())(IMAGES), fxprune.shrink(gated)(IMAGES)) < 1e-5


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (16, "KeyError: 'self'"),
        (12, "ValueError: 11 labels along dimension 1 of a result (1, 12, 7, 7)"),
        (8, "ValueError: 8 labels meet 7"),
        (4, "AttributeError: 'Tensor' object has no attribute 'labels'"),
    ],
)
def test_a_rule_that_raises_pins_what_it_is_asked_of(width: int, said: str) -> None:
    graph = fxprune.analyze(Through("broken", width), (IMAGES[:1],))
    assert not graph.groups
    pinned = [pin for pin in graph.pinned if pin.reason.startswith("its rule Broken (")]
    assert [pin.channels for pin in pinned] == [width]
    assert pinned[0].reason.endswith(said)


HEAD = """
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.policies import Policy
from fxprune.policies.base import Observes, State, mark_seen, unseen_first, unseen_last
from fxprune.policies.scale import per_group_max

"""
OWN = """
import torch
from torch import nn

import latest


class Loud(nn.Conv2d):
    def forward(self, x):
        print("a shape", x.shape)
        return super().forward(x)


def build_model():
    return nn.Sequential(Loud(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))


example_inputs = torch.zeros(2, 3, 9, 9)
"""


@pytest.mark.slow
def test_the_command_line_knows_a_policy_that_the_network_imports(tmp_path: Path) -> None:
    """And what the network's own code prints does not get between the lines of the result."""
    (tmp_path / "latest.py").write_text(HEAD + inspect.getsource(Latest))
    (tmp_path / "model.py").write_text(OWN)
    words = "instrument", "model.py", "--policy", "latest{share=0.5}", "--json"
    done = run(*words, folder=tmp_path)
    assert json.loads(done.stdout)["policy"] == "latest{share=0.5}"
    assert "a shape" in done.stderr
    done = run("report", "model.fxprune", folder=tmp_path)
    assert "wrote" in done.stderr
