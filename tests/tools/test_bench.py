"""The step benchmark runs; what it says of time is not looked at."""

import importlib
import itertools
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

CONTENDERS = (
    *("dense", "masked", "gathered", "gated", "gated every=10", "settled"),
    *("narrow", "compact", "torch-pruning"),
)


@pytest.fixture
def bench() -> dict[str, ModuleType]:
    names = ("models", "contenders", "worker", "step")
    return {name: importlib.import_module(f"bench_{name}") for name in names}


def outputs(network: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        return network(torch.randn(4, 3, 32, 32))


def small(width: float = 1.0) -> nn.Module:
    """A network that costs no time; of the networks themselves only the widths are tested here."""
    inner, last = int(16 * width), int(32 * width)
    return nn.Sequential(
        nn.Conv2d(3, inner, 3, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True),
        nn.Conv2d(inner, last, 3, bias=False), nn.BatchNorm2d(last), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    "contender",
    [c if c == "gated" else pytest.param(c, marks=pytest.mark.slow) for c in CONTENDERS],
)
def test_contenders(
    contender: str, bench: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tuple(bench["contenders"].CONTENDERS) == CONTENDERS
    models = bench["models"]
    monkeypatch.setitem(models.NETWORKS, "small", models.Network(small))
    case = bench["contenders"].Case("small", 2, 0.25, 8, threads=torch.get_num_threads(), age=3)
    worker = bench["worker"].Worker(case, contender)
    if isinstance(worker.network, fxprune.GatedModule):
        assert worker.network.steps == 3
    assert all(seconds > 0 for seconds in itertools.chain(*worker.turn(2)))
    assert all(math.isfinite(seconds) for seconds in worker.parts(1).values())
    facts: dict[str, Any] = worker.facts()
    narrow, dense = (sum(p.numel() for p in small(width).parameters()) for width in (0.25, 1.0))
    full = contender in ("dense", "masked", "gathered")
    assert facts["params"] == (dense if full else narrow)
    assert (facts["bank_bytes"] > 0) == contender.startswith(("gated", "settled"))


def test_masked_gathered_and_compact_compute_the_same(bench: dict[str, ModuleType]) -> None:
    contenders = bench["contenders"]
    case = contenders.Case("resnet20", 2, 0.5, 32)
    found = {}
    for name in ("masked", "gathered", "compact"):
        torch.manual_seed(0)
        found[name] = outputs(contenders.CONTENDERS[name](case).eval())
    torch.testing.assert_close(found["gathered"], found["compact"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["masked"], found["compact"], rtol=1e-4, atol=1e-4)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["vgg16_bn", "resnet20", "densenet40", "mobilenet_v2", "resnet50"])
def test_the_narrow_network_has_the_kept_widths(name: str, bench: dict[str, ModuleType]) -> None:
    network = bench["models"].NETWORKS[name]
    example = (torch.zeros(2, 3, 32, 32),)
    gated = fxprune.instrument(network.build(1.0), example, budget="keep=0.25", round_to=1)
    compact = dict(fxprune.shrink(gated).named_parameters())
    narrow = dict(network.build(0.25).named_parameters())
    assert {n: p.shape for n, p in compact.items()} == {n: p.shape for n, p in narrow.items()}


@pytest.mark.slow
def test_the_command_resumes(
    tmp_path: Path,
    bench: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, but its contenders in theirs."""
    file, picture = tmp_path / "step.json", tmp_path / "step.svg"
    arguments = [
        *("--contenders", "settled", "--batch", "2", "--turns", "2", "--steps", "1"),
        *("--json", str(file), "--plot", str(picture)),
    ]
    monkeypatch.setattr(sys, "argv", ["bench_step.py", *arguments])
    bench["step"].main()
    assert "settled" in capsys.readouterr().out
    written = file.read_bytes()
    monkeypatch.setattr(bench["step"], "measure", None)  # what is done is not measured again
    bench["step"].main()
    assert "settled" in capsys.readouterr().out
    assert file.read_bytes() == written
    assert picture.stat().st_size > 0
    ((title, record),) = json.loads(written).items()
    assert title == "resnet20 32px batch=2 keep=0.5 sgd cpu x1"
    narrow = record["contenders"]["narrow"]
    assert narrow["ratio"] == 1
    assert set(narrow["by_turn"]) == {1}
    assert record["contenders"]["settled"]["ratio"] > 0
