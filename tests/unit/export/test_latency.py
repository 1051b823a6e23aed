"""Latency budgets: the search with a stand-in for the clock, and once with ONNX Runtime."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import api
from fxprune.budget.budget import Budget
from fxprune.budget.widths import allowed_widths, uniform_widths
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Layout, Widths
from fxprune.cli.instrument import inspect
from fxprune.errors import BudgetError, OptionError, RunError
from fxprune.export.bench import HERE, Bench, Known, Target, measure
from fxprune.export.latency import CONFIRMATIONS, MEASUREMENTS, Choice, choose
from fxprune.export.timing import Quotient, Timing
from fxprune.gated.module import Settings
from fxprune.passes import Program, apply
from fxprune.policies import parse
from tests.support.chains import chain

Clock = Callable[[Widths], float]


def timing(share: float, spread: float = 0.0) -> Timing:
    """Cold calls take a tenth more."""
    hot, cold = (
        Quotient(middle, middle * (1 - spread), middle * (1 + spread), 50)
        for middle in (share, min(1.1 * share, 1.0))
    )
    return Timing(hot, cold, (0.01, 0.02), (0.01 * share, 0.02 * share), 1, True)


@dataclass
class StandIn:
    """A bench whose clock is a function of the widths, with noise in what is measured first."""

    clock: Clock
    noise: Callable[[Widths], float] = lambda _: 1.0
    target: Target = HERE
    known: dict[Widths, Known] = field(default_factory=dict)
    asked: list[Widths] = field(default_factory=list)
    again: list[Widths] = field(default_factory=list)

    def __call__(self, widths: Widths) -> Known:
        if widths not in self.known:
            self.asked.append(widths)
            share = self.clock(widths) * self.noise(widths)
            self.known[widths] = Known(timing(share), "2026-11-28", fresh=True)
        return self.known[widths]

    def afresh(self, widths: Widths) -> Known:
        self.again.append(widths)
        self.known[widths] = Known(timing(self.clock(widths)), "2026-11-28", True, fresh=True)
        return self.known[widths]


def clock(cost: CostModel, fixed: float = 0.0, block: int = 1) -> Clock:
    """A share that grows with the macs of widths in whole blocks, over a fixed part."""

    def measure(widths: Widths) -> float:
        rounded = [min(-(-w // block) * block, n) for w, n in zip(widths, cost.sizes)]
        return (fixed + cost.macs(tuple(rounded)) / cost.dense_macs) / (1 + fixed)

    return measure


def wobble(by: float) -> Callable[[Widths], float]:
    """Noise of at most so much, another one for other widths."""
    return lambda widths: 1 + by * ((hash(widths) % 2001) / 1000 - 1)


def check(choice: Choice, budget: Budget, layout: Layout, bench: StandIn) -> None:
    """What is said was measured afresh, and the budget is never exceeded by more than 5 %."""
    widths = choice.budget.widths
    assert choice.share == pytest.approx(bench.clock(widths))
    assert choice.measured[widths] == choice.share
    assert choice.known.confirmed
    assert widths in bench.again
    assert choice.share <= 1.05 * budget.value + 1e-9
    assert set(widths) <= {w for own in allowed_widths(budget, layout) for w in own}
    assert len(set(bench.asked)) == len(bench.asked), "each is measured once"
    assert len(choice.measured) <= 1 + (1 + CONFIRMATIONS) * MEASUREMENTS


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(st.integers(64, 256), min_size=3, max_size=20),
    st.floats(0.25, 0.95),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([1, 4]),
    st.sampled_from([0.0, 0.02]),
)
def test_the_budget_is_met(
    sizes: list[int], value: float, fixed: float, block: int, noise: float
) -> None:
    layout, cost = chain(tuple(sizes))
    budget = Budget("latency", value, round_to=1)
    bench = StandIn(clock(cost, fixed, block), wobble(noise))
    choice = choose(budget, layout, cost, bench)
    check(choice, budget, layout, bench)
    if block == 1:
        assert choice.met
    assert choice.share >= 0.8 * value


def test_time_that_hangs_on_one_group_only() -> None:
    layout, cost = chain((64, 64, 64, 64))
    bench = StandIn(lambda widths: 0.2 + 0.8 * widths[1] / 64)
    choice = choose(Budget("latency", 0.5), layout, cost, bench)
    assert abs(choice.budget.widths[1] / 64 - 0.375) <= 1 / 8
    assert max(choice.budget.widths) - min(choice.budget.widths) <= 8, "all keep the same share"


def test_noise_does_not_choose() -> None:
    """Of many candidates that noise brings near the budget, what is said is measured anew."""
    layout, cost = chain((64, 96, 128))
    budget = Budget("latency", 0.5, round_to=1)
    lucky = StandIn(clock(cost), lambda widths: 0.5 / clock(cost)(widths))  # all seem to be right
    choice = choose(budget, layout, cost, lucky)
    check(choice, budget, layout, lucky)


def test_narrower_and_slower_is_measured_once_more() -> None:
    layout, cost = chain((64, 64))
    true = clock(cost)
    bench = StandIn(true, lambda widths: 20.0 if widths == (8, 8) else 1.0)
    choice = choose(Budget("latency", 0.5, round_to=8), layout, cost, bench)
    assert (8, 8) in bench.again, "it seemed to be slower than the budget"
    assert choice.measured[8, 8] == true((8, 8))
    assert not choice.slower

    # A staircase that is real: 40 channels are slower than 48.
    stairs = StandIn(lambda widths: true(widths) * (1.5 if max(widths) == 40 else 1.0))
    found = choose(Budget("latency", 0.55, round_to=8), layout, cost, stairs)
    assert found.share <= 1.05 * 0.55
    assert found.share == stairs.clock(found.budget.widths)


def test_the_budget_binds_hot_or_cold() -> None:
    layout, cost = chain((64, 96, 128))
    shares = []
    for cold in (False, True):
        bench = StandIn(clock(cost), target=Target(cold=cold))
        choice = choose(Budget("latency", 0.5, round_to=1), layout, cost, bench)
        assert choice.met
        shares.append(choice.known.timing.hot.median)
    assert shares[1] == pytest.approx(shares[0] / 1.1, rel=0.05)


def test_where_rounding_leaves_no_choice_the_widths_are_below_the_budget() -> None:
    layout, cost = chain((16, 16))
    bench = StandIn(clock(cost))
    budget = Budget("latency", 0.6, round_to=8)
    choice = choose(budget, layout, cost, bench)
    check(choice, budget, layout, bench)
    assert not choice.met
    assert choice.share < 0.6


def test_what_a_jump_leaves_goes_to_other_groups() -> None:
    """Where 12 channels take much longer than 8, all groups rise together to 8 and 40 only."""
    layout, cost = chain((16, 16, 64, 64, 64))
    macs = clock(cost, block=8)
    bench = StandIn(lambda widths: 0.1 + 0.4 * macs(widths) + 0.5 * (max(widths[:2]) > 8))
    budget = Budget("latency", 0.4)
    choice = choose(budget, layout, cost, bench)
    check(choice, budget, layout, bench)
    assert bench.clock((8, 8, 40, 40, 40)) < 0.8 * 0.4
    assert choice.met
    assert choice.budget.widths[:2] == (8, 8)
    assert max(choice.budget.widths[2:]) - min(choice.budget.widths[2:]) <= 8, "they rise together"


def test_all_of_it_needs_no_search() -> None:
    layout, cost = chain((16, 16))
    bench = StandIn(clock(cost))
    choice = choose(Budget("latency", 1.0), layout, cost, bench)
    assert choice.budget.widths == (16, 16)
    assert bench.asked == [(16, 16)]


def test_what_is_known_is_not_measured_again() -> None:
    layout, cost = chain((64, 96, 128))
    bench = StandIn(clock(cost))
    budget = Budget("latency", 0.5, round_to=1)
    first = choose(budget, layout, cost, bench)
    bench.asked.clear()
    bench.again.clear()
    assert choose(budget, layout, cost, bench).budget == first.budget
    assert not bench.asked
    assert not bench.again


def test_what_is_not_possible_is_refused() -> None:
    layout, cost = chain((16, 16), pinned=100_000)
    with pytest.raises(BudgetError) as caught:
        choose(Budget("latency", 0.5, round_to=8), layout, cost, StandIn(clock(cost)))
    text = str(caught.value)
    assert text.startswith("the budget latency=0.5 cannot be met\n  why  with the smallest widths")
    assert text.endswith("do   raise the budget, or lower round_to")
    with pytest.raises(BudgetError, match="cannot be met"):
        choose(Budget("latency", 0.5, round_to=16), layout, cost, StandIn(clock(cost)))


def test_a_machine_that_changes_its_mind_is_refused() -> None:
    layout, cost = chain((64, 96, 128))
    bench = StandIn(clock(cost))

    def slower(widths: Widths) -> Known:
        bench.again.append(widths)
        known = Known(timing(min(2 * clock(cost)(widths), 1.0)), "2026-11-28", True, fresh=True)
        bench.known[widths] = known
        return known

    bench.afresh = slower  # type: ignore[method-assign]
    with pytest.raises(BudgetError, match=r"cannot be met|no widths are known to meet"):
        choose(Budget("latency", 0.3, round_to=1), layout, cost, bench)


def test_the_widths_belong_to_the_budget() -> None:
    layout, cost = chain((16, 32))
    budget = Budget("latency", 0.4, 4, widths=(8, 12))
    assert str(budget) == "latency=0.4,widths=8/12"
    assert Budget.parse(str(budget), 4) == budget
    assert uniform_widths(budget, layout, cost) == (8, 12)
    assert budget.at(0.4, layout.sizes) is not budget.at(0.7, layout.sizes)
    assert uniform_widths(budget.at(0.4, layout.sizes), layout, cost) == (8, 12)
    assert uniform_widths(budget.at(0.7, layout.sizes), layout, cost) == (12, 20)
    assert uniform_widths(budget.at(1.0, layout.sizes), layout, cost) == (16, 32)
    with pytest.raises(BudgetError, match=r"latency=0\.4 has not been measured"):
        uniform_widths(Budget("latency", 0.4), layout, cost)
    for widths in ((8,), (8, 33)):
        with pytest.raises(BudgetError, match="does not fit the channel groups"):
            uniform_widths(Budget("latency", 0.4, widths=widths), layout, cost)


def test_a_policy_that_allocates_keeps_the_widths_that_were_measured() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    policy = "utility{warmup=1,reallocate=1}"
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 9, 9),), policy, "latency=0.5,widths=3")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    fxprune.attach(gated, optimizer)
    seen = []
    for _ in range(4):
        seen.append(gated.widths)
        gated(torch.randn(2, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen == [(8,), (3,), (3,), (3,)]


@pytest.mark.slow
def test_with_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It completes, its figures are consistent, and what the cache holds is not measured twice."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 1)),
    )
    inputs = (torch.zeros(2, 3, 24, 24),)
    budget = Budget("latency", 0.8, round_to=8)
    said: list[str] = []
    choice = api.fit_latency(model, inputs, budget, Target(threads=1), progress=said.append)
    assert choice.known.fresh
    assert choice.known.confirmed
    assert choice.share == choice.known.timing.hot.median == choice.measured[choice.budget.widths]
    assert choice.share <= 1.05 * 0.8
    assert choice.target == Target(threads=1)
    assert any("rounds" in line for line in said)
    gated = fxprune.instrument(model, inputs, budget=choice.budget)
    assert gated.widths == choice.budget.widths
    fxprune.save(gated, tmp_path / "gated.safetensors")
    again = fxprune.load(tmp_path / "gated.safetensors", model)  # as it was, without measuring
    assert again.widths == gated.widths


@pytest.mark.slow
def test_each_group_is_halved_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The clock counts parameters: what is saved is the share of a group's, whatever the noise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clock.py").write_text(
        "import sys, onnx, math\n"
        "print(sum(math.prod(t.dims) for t in onnx.load(sys.argv[1]).graph.initializer))\n"
    )
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        "def build_model():\n"
        "    layers = nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()\n"
        "    return nn.Sequential(*layers, nn.Conv2d(64, 4, 1))\n"
    )
    command = f"{sys.executable} clock.py {{model}}"
    inspect("model.py", shape="3x9x9", latency=True, latency_command=command, as_json=True)
    found = json.loads(capsys.readouterr().out)
    params, latency = found["params"], found["latency"]
    assert latency["dense"] == pytest.approx(params / 1000)
    first, second = (latency["groups"][name] for name in ("0", "2"))
    assert (first["width"], second["width"]) == (16, 32)
    assert first["share"] == pytest.approx((16 * 28 + 16 * 64 * 9) / params)
    assert second["share"] == pytest.approx((32 * (32 * 9 + 1) + 32 * 4) / params)
    assert first["error"] == second["error"] == 0
    inspect("model.py", shape="3x9x9", latency=True, latency_command=command)
    said = capsys.readouterr().out
    assert "32 → 16" in said
    assert f"by {sys.executable} clock.py" in " ".join(said.split())
    with pytest.raises(OptionError, match="nothing is measured"):
        inspect("model.py", shape="3x9x9", threads=1)


CELL = {"median": 0.5, "low": 0.5, "high": 0.5, "rounds": 9}
GOOD = {
    "timing": {
        "hot": CELL,
        "cold": CELL,
        "dense": [1, 1],
        "compact": [1, 1],
        "threads": 1,
        "quiet": True,
    },
    "date": "2026-11-28",
    "confirmed": True,
}


@pytest.mark.parametrize(
    "content",
    [
        [],
        None,
        {"8": -1.0},
        {"8": "fast"},
        {"a": GOOD},
        {"8": GOOD | {"date": "yesterday"}},
        {"8": GOOD | {"timing": GOOD["timing"] | {"hot": CELL | {"low": -1}}}},
        {"8": GOOD | {"timing": GOOD["timing"] | {"dense": [1]}}},
    ],
)
def test_damaged_measurements(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with bench_of(model) as bench:
        file = bench.path
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"8": GOOD}))
    with bench_of(model) as bench:
        assert not bench((8,)).fresh
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match="does not hold times by widths\n  do   delete it"):
        bench_of(model)
    bench_of(model, remeasure=True)


def bench_of(model: nn.Module, target: Target = HERE, *, remeasure: bool = False) -> Bench:
    """A bench for images of 8x8."""
    coupled = apply("couple", apply("trace", Program(model, (torch.zeros(2, 3, 8, 8),))))
    whole = Settings(parse("fixed"), Budget("keep", 1.0))
    program = apply("gate", coupled, settings=whole)
    return Bench(program, (torch.zeros(2, 3, 8, 8),), target, remeasure=remeasure)


COMMAND = """\
import pathlib, sys
size = len(pathlib.Path(sys.argv[1]).read_bytes())
print("warming up", size)
print(size / 1000)
"""


@pytest.mark.slow
def test_a_command_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board on which time is the size of the file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "board.py").write_text(COMMAND)
    target = Target(command=f"{sys.executable} {tmp_path / 'board.py'} {{model}}")
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten())
    with bench_of(model, target) as bench:
        found = bench((32,))
        expected = len(bench.content((32,))) / len(bench.content((64,)))
        assert found.timing.hot.median == pytest.approx(expected)
        assert found.timing.hot == found.timing.cold
        assert bench.path.exists()
    with bench_of(model, target) as bench:
        assert not bench((32,)).fresh, "it was quiet, and is kept"


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "board.py").write_text(COMMAND)
    target = Target(command=f"{sys.executable} {tmp_path / 'board.py'} {{model}}")
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten())
    with bench_of(model, target) as bench:
        assert bench((32,)).fresh


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("{python} -c 1 {model}", "its exit code is 0, and it says: nothing"),
        ("{python} -c print(-1.5) {model}", "it says: -1.5"),
        ("{python} -c \"exit('no board')\" {model}", "its exit code is 1, and it says: no board"),
        ("nowhere {model}", "cannot run the latency command nowhere"),
        (
            "{python} -c \"import os; os.write(1, b'\\xff')\" {model}",
            r"its exit code is 0, and it says: \xff",
        ),
    ],
)
def test_a_command_that_measures_nothing_is_refused(command: str, message: str) -> None:
    target = Target(command=command.replace("{python}", sys.executable))
    with pytest.raises(BudgetError) as caught:
        measure(b"dense", b"compact", (), target)
    assert message in str(caught.value)


def test_a_command_that_varies_too_much_is_refused(tmp_path: Path) -> None:
    code = "import sys, time; print(1 + time.time_ns() // 1000 % 1000)"
    (tmp_path / "board.py").write_text(code)
    target = Target(command=f"{sys.executable} {tmp_path / 'board.py'} {{model}}")
    with pytest.raises(
        BudgetError, match="varies too much\n  why  the middle half of 30 quotients"
    ):
        measure(b"dense", b"compact", (), target)


def test_a_target_says_what_it_cannot_be() -> None:
    with pytest.raises(OptionError, match="threads cannot be 0"):
        Target(threads=0)
    with pytest.raises(OptionError, match="does not say where the file goes: ssh board"):
        Target(command="ssh board")
