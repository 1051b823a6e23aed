"""How long analysis takes: fxprune, Torch-Pruning's graph, and torch.fx's own trace, side by side.

    python tools/bench/bench_analyze.py [--only resnet18 chain-1000] [--repeat 3] [--json FILE]

All contenders analyse the same model in one run, each in turn and `--repeat` times; the table
shows medians as ratios to `torch.fx.symbolic_trace` of that model. Torch-Pruning runs once, warmed
up on a small network, in a process of its own, since some of its graphs never end; `--limit`
seconds stop it.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn

import fxprune

ZOO = (
    "resnet18",
    "resnet152",
    "densenet201",
    "efficientnet_b7",
    "efficientnet_v2_l",
    "regnet_y_8gf",
    "convnext_large",
)
CHAINS = tuple(f"{kind}-{length}" for kind in ("chain", "residual") for length in (100, 1000, 5000))


class Residual(nn.Module):
    """x + conv(x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).relu()


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A model in evaluation mode, and an input for it."""
    kind, _, length = name.partition("-")
    if length:
        width, depth = 8, int(length)
        layer = Residual if kind == "residual" else _layer
        layers = [layer(width) for _ in range(depth)]
        model = nn.Sequential(nn.Conv2d(3, width, 1), *layers, nn.Conv2d(width, 10, 1))
        return model.eval(), torch.zeros(1, 3, 8, 8)
    return torchvision.models.get_model(name).eval(), torch.zeros(1, 3, 224, 224)


def _layer(width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU())


def timed(run: Callable[[], Any], repeat: int) -> float:
    """The median of some runs, in seconds."""
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def peer(name: str, answer: Any) -> None:
    """Torch-Pruning's dependency graph, in a process of its own."""
    torch.set_num_threads(1)
    model, x = build(name)
    try:
        import torch_pruning

        small, (image,) = _warm_up()
        torch_pruning.DependencyGraph().build_dependency(small, example_inputs=image)
        answer.send("ready")
        began = time.perf_counter()
        torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
        answer.send(time.perf_counter() - began)
    except Exception as error:  # whatever it is, it is the peer's result
        answer.send(f"{type(error).__name__}: {error}".splitlines()[0])


def run_peer(name: str, limit: float) -> float | str:
    """Seconds that Torch-Pruning takes, or how it failed."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=peer, args=(name, there))
    process.start()
    there.close()
    try:
        here.recv()  # it is ready; loading, building and warming up do not count
        answer: float | str = here.recv() if here.poll(limit) else f"not done in {limit:.0f} s"
    except EOFError:
        answer = "crashed"
    process.kill()
    process.join()
    return answer


def measure(name: str, repeat: int, limit: float) -> dict[str, Any]:
    """One row of the table."""
    model, x = build(name)
    trace = timed(lambda: fx.symbolic_trace(model), repeat)
    analyze = timed(lambda: fxprune.analyze(model, (x,)), repeat)
    other = run_peer(name, limit)
    return {
        "model": name,
        "modules": sum(1 for _ in model.modules()),
        "trace_s": trace,
        "analyze_s": analyze,
        "analyze_over_trace": analyze / trace,
        "torch_pruning": other,
        "torch_pruning_over_analyze": other / analyze if isinstance(other, float) else None,
    }


def show(row: dict[str, Any]) -> str:
    peer_seconds, ratio = row["torch_pruning"], row["torch_pruning_over_analyze"]
    text = f"{peer_seconds:8.2f} s {ratio:8.1f} x" if ratio else f"{peer_seconds}"
    return (
        f"{row['model']:20} {row['modules']:6} modules  trace {row['trace_s']:7.3f} s  "
        f"analyze {row['analyze_s']:7.3f} s = {row['analyze_over_trace']:5.2f} x  "
        f"Torch-Pruning {text}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[*ZOO, *CHAINS])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=120, help="seconds for Torch-Pruning")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fxprune.analyze(*_warm_up())
    rows = []
    for name in arguments.only:
        rows.append(measure(name, arguments.repeat, arguments.limit))
        print(show(rows[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _warm_up() -> tuple[nn.Module, tuple[Tensor]]:
    model, x = build("chain-100")
    return model, (x,)


if __name__ == "__main__":
    main()
