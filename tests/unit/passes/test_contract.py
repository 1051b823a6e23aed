"""What holds of every pass that is collected."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fxprune.budget.budget import Budget
from fxprune.errors import GateError, TraceError
from fxprune.gated.module import Settings
from fxprune.passes import Program, apply, known
from fxprune.policies import parse
from tests.unit.passes.tiny import coupled, printed, start

SETTINGS = Settings(parse("fixed"), Budget.parse("keep=0.5"))


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
    stage.ensures(stage(case.given()))
    with pytest.raises(AssertionError):
        stage.ensures(case.wrong())
