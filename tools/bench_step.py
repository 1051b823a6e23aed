"""What a training step costs: dense, gated, and the compact network, side by side in one run.

    python tools/bench_step.py --model resnet20 --budget keep=0.5 --batch-size 128 --turns 30

Each contender takes one step in turn, so that a busy machine slows all of them alike. Printed are
medians as ratios to `compact`, the plain network of the kept widths, trained by the same
optimiser. `gated` selects anew in every step, `gated every=10` in every tenth, `settled` never.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import models
import torch
from torch import nn
from torch.nn import functional

import fxprune


def stepper(network: nn.Module, batch: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """One step of SGD with momentum; a gated network is attached."""
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if isinstance(network, fxprune.GatedModule):
        fxprune.attach(network, optimizer)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network(batch), labels).backward()
        optimizer.step()

    return step


def contenders(name: str, policy: str, budget: str) -> dict[str, nn.Module]:
    """The networks by name, all from one dense network."""
    dense = getattr(models, name)()
    example = (torch.zeros(2, 3, 32, 32),)
    gated = {
        every: fxprune.instrument(dense, example, policy, budget, every=every) for every in (1, 10)
    }
    settled = fxprune.instrument(dense, example, policy, budget)
    settled.settle()
    return {
        "dense": dense,
        "gated": gated[1],
        "gated every=10": gated[10],
        "settled": settled,
        "compact": fxprune.shrink(gated[1]),
    }


def measure(networks: dict[str, nn.Module], batch_size: int, turns: int) -> dict[str, float]:
    """Median seconds of a step, after a tenth of the turns as warm-up."""
    batch, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    steps = {name: stepper(network, batch, labels) for name, network in networks.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(turns + max(1, turns // 10)):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[-turns:]) for name, taken in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("resnet20", "resnet32", "resnet56"), default="resnet20")
    parser.add_argument("--policy", default="cucb")
    parser.add_argument("--budget", default="keep=0.5")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    networks = contenders(arguments.model, arguments.policy, arguments.budget)
    seconds = measure(networks, arguments.batch_size, arguments.turns)
    for name, median in seconds.items():
        ratio = median / seconds["compact"]
        print(f"{name:16} {1000 * median:8.1f} ms   {ratio:6.3f} x compact")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(seconds, indent=2) + "\n")


if __name__ == "__main__":
    main()
