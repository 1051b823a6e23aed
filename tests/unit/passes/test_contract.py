"""What holds of every pass that is collected."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import shrink
from fxprune.budget.budget import Budget
from fxprune.errors import GateError, OptionError, PassError, TraceError
from fxprune.gated.module import Settings
from fxprune.passes import Pass, Program, apply, assert_same_function, known, parse
from fxprune.policies import parse as parse_policy
from fxprune.tracing.module import TracedModule
from tests.support.tiny import coupled, printed, start

SETTINGS = Settings(parse_policy("fixed"), Budget.parse("keep=0.5"))


def traced() -> Program:
    return apply("trace", start())


def gated() -> Program:
    return apply("gate", coupled(), settings=SETTINGS)


def compact() -> Program:
    return apply("shrink", gated())


def training() -> Program:
    program = compact()
    program.module.train()
    return program


@dataclass(frozen=True)
class Case:
    """A pass: what it can work on, what it refuses and how, what it would never promise."""

    given: Callable[[], Program]
    refuses: Callable[[], Program]
    error: type[Exception]
    wrong: Callable[[], Program]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    same: bool = True
    """Whether the result computes what the given network computes."""


CASES = {
    "trace": Case(start, lambda: Program(start().module, (3,)), TraceError, start),
    "couple": Case(traced, start, AssertionError, traced),
    "gate": Case(coupled, traced, GateError, coupled, {"settings": SETTINGS}, same=False),
    "shrink": Case(gated, traced, GateError, gated),
    "fold": Case(compact, training, GateError, training),
}

every_pass = pytest.mark.parametrize("name", known())


def bits(program: Program) -> dict[str, Tensor]:
    state = program.module.state_dict()
    return {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}


def code(program: Program) -> str:
    return printed(program.module) if isinstance(program.module, fx.GraphModule) else ""


def test_every_pass_has_a_case() -> None:
    assert set(known()) == set(CASES)


@every_pass
def test_is_a_frozen_dataclass(name: str) -> None:
    stage = known()[name](**CASES[name].options)
    assert dataclasses.is_dataclass(stage)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(stage, "other", 1)  # noqa: B010 - checked at run time


@every_pass
def test_leaves_what_it_is_given(name: str) -> None:
    case = CASES[name]
    program = case.given()
    before, text = bits(program), code(program)
    modes = [(type(module), module.training) for module in program.module.modules()]
    result = apply(name, program, **case.options)
    assert result.module is not program.module
    after = bits(program)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert [(type(module), module.training) for module in program.module.modules()] == modes
    assert code(program) == text


@every_pass
@torch.no_grad()
def test_computes_the_same(name: str) -> None:
    case = CASES[name]
    program = case.given()
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    result = apply(name, program, **case.options)
    result.graph_module.graph.lint()
    found, wanted = result.module(x), program.module(x)
    assert found.shape == wanted.shape
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6) == case.same


@every_pass
def test_requires(name: str) -> None:
    case = CASES[name]
    with pytest.raises(case.error):
        apply(name, case.refuses(), **case.options)


@every_pass
def test_ensures(name: str) -> None:
    case = CASES[name]
    stage = known()[name](**case.options)
    given = case.given()
    stage.ensures(given, stage(given))
    with pytest.raises(AssertionError):
        stage.ensures(given, case.wrong())


@every_pass
def test_ensures_holds_the_result_to_what_it_was_made_of(name: str) -> None:
    """A pass that makes another network is refused by itself, as a user would see it."""
    case = CASES[name]
    real = known()[name]
    spoil = _spoil_graph if name == "couple" else _spoil_weights

    class Faulty(real):  # type: ignore[misc,valid-type]
        def run(self, program: Program) -> Program:
            own = dataclasses.replace(program, module=copy.deepcopy(program.module))
            result: Program = super().run(own)
            spoil(result.graph_module)
            return result

    with pytest.raises((PassError, TraceError)) as refused:
        Faulty(**case.options)(case.given())
    assert "differs by" in refused.value.why or "has other values" in refused.value.why


@torch.no_grad()
def _spoil_weights(module: fx.GraphModule) -> None:
    for parameter in module.parameters():
        parameter += 0.1


def _spoil_graph(module: fx.GraphModule) -> None:
    """Doubles what the last layer returns; the new node has the record of that layer."""
    assert isinstance(module, TracedModule)
    for graph in module.graphs:
        last = [node for node in graph.nodes if node.op == "call_module"][-1]
        with graph.inserting_after(last):
            double = graph.call_function(torch.mul, (last, 2))
        last.replace_all_uses_with(double, delete_user_cb=lambda user: user.target is not torch.mul)
        double.meta.update(last.meta)
    module.recompile()


@dataclass(frozen=True)
class Scale(Pass):
    """A user's pass, which is in no folder: it scales the last layer, and promises not to."""

    by: float = 1.0

    def requires(self, program: Program) -> None:
        if program.module.training:
            raise GateError("cannot scale in training mode")

    def run(self, program: Program) -> Program:
        module = copy.deepcopy(program.graph_module)
        with torch.no_grad():
            module.get_parameter("fc.weight").mul_(self.by)
        return dataclasses.replace(program, module=module)

    def ensures(self, before: Program, after: Program) -> None:
        assert_same_function(before, after)


OUTSIDE = f"{__name__}:Scale"


def test_a_pass_from_outside_is_found_by_its_module_and_class() -> None:
    assert parse(OUTSIDE) == Scale()
    assert parse(OUTSIDE + "{by=2}") == Scale(by=2.0)
    assert parse(Scale(3.0)) == Scale(3.0)


def test_shrink_runs_passes_in_their_order() -> None:
    network = gated().module
    folded = shrink(network, passes=f"fold,{OUTSIDE}{{by=1}}")
    assert not any(isinstance(child, nn.BatchNorm2d) for child in folded.modules())
    again = shrink(network, passes=["fold", Scale()])
    x = torch.randn(3, 3, 4, 4)
    assert torch.equal(folded(x), again(x))


def test_a_pass_that_breaks_its_promise_is_refused_by_name() -> None:
    with pytest.raises(PassError, match="the result of the pass Scale is not what it promises"):
        shrink(gated().module, passes=OUTSIDE + "{by=2}")


def test_a_pass_by_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match=r"unknown pass 'flod'\n.*known: .*fold"):
        apply("flod", start())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flod", "unknown pass 'flod'"),
        ("no_such_module:Scale", "cannot import no_such_module"),
        ("math:pi", "it does not derive from fxprune.passes.Pass"),
        ("math:tau2", "math has no tau2"),
        ("math:", "cannot read the pass 'math:'"),
        (":Scale", "cannot read the pass ':Scale'"),
        ("fxprune.passes:Pass", "it lacks ensures, requires, run"),
        (OUTSIDE + "{by=much}", "option 'by' of the pass 'Scale' cannot be 'much'"),
        (OUTSIDE + "{to=1}", "the pass 'Scale' has no option 'to'"),
    ],
)
def test_a_pass_that_cannot_be_built_is_refused(text: str, said: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse(text)
    assert said in str(refused.value)


@dataclass(frozen=True)
class Erring(Scale):
    """Errs in the method that it is told to."""

    fault: str = ""

    def requires(self, program: Program) -> None:
        if self.fault == "requires":
            raise KeyError(program)

    def run(self, program: Program) -> Program:
        result = super().run(program)
        if self.fault == "run":
            raise RuntimeError("no such thing")
        plain = dataclasses.replace(result, module=nn.Conv2d(3, 3, 1))
        wrong: dict[str, Any] = {"none": None, "module": copy.copy(result.module), "plain": plain}
        return wrong.get(self.fault, result)

    def ensures(self, before: Program, after: Program) -> None:
        if self.fault == "ensures":
            raise KeyError(before, after)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("requires", "the pass Erring raises KeyError\n  at .*test_contract.py:"),
        ("run", "the pass Erring raises RuntimeError\n  at .*test_contract.py:"),
        ("ensures", "the pass Erring raises KeyError\n  at .*test_contract.py:"),
        ("none", r"run\(\) of the pass Erring returns None\n  do   return a Program"),
        ("module", r"run\(\) of the pass Erring returns a GraphModule\n"),
        ("plain", r"run\(\) of the pass Erring returns a Conv2d\n"),
    ],
)
def test_a_pass_that_errs_is_refused_by_name(fault: str, said: str) -> None:
    with pytest.raises(PassError, match=said):
        shrink(gated().module, passes=[Erring(by=1, fault=fault)])
