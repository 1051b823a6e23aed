"""What an evaluation forward costs more than the narrow network's own: time and memory.

    python tools/bench/bench_evaluation.py [resnet18 mobilenet_v2] [--policy random] [--batch 64]

Outside a forward the parameters hold the training selection, so an evaluation gathers the tensors
of the one that it shows. The first after a step plans that, and those that follow keep what they
can. All differences are given in copies of the narrow network's tensors: the time of cloning them,
in turns with the forwards, and their bytes. Medians of processor time in one thread, at 32 pixels
and by default at batch 1, where a copy weighs most.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

import fxprune


def peak(run: Callable[[], Any]) -> int:
    """The most bytes that were allocated at once while something ran, beside those of before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    now = most = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def timed(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median seconds of processor time of each, in turns; the first ones warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            began = time.process_time()
            run()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(each[repeat // 4 :]) for name, each in seconds.items()}


def measure(name: str, policy: str, steps: int, repeat: int, batch: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    x = torch.randn(batch, 3, 32, 32)
    model = torchvision.models.get_model(name, num_classes=10).train()
    gated = fxprune.instrument(model, (torch.zeros(2, 3, 64, 64),), policy, "keep=0.5")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    fxprune.attach(gated, optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        gated(torch.randn(4, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    gated.eval()
    narrow = fxprune.shrink(gated)
    tensors = [*narrow.parameters(), *narrow.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    with torch.no_grad():
        runs = {
            "gated": lambda: gated(x),
            "first": lambda: gated.train().eval()(x),
            "narrow": lambda: narrow(x),
            "copy": lambda: [tensor.clone() for tensor in tensors],
        }
        spent = timed(runs, repeat)
        held = {each: peak(runs[each]) for each in ("first", "narrow")}
    time_more, first_more = (
        (spent[each] - spent["narrow"]) / spent["copy"] for each in ("gated", "first")
    )
    memory_more = (held["first"] - held["narrow"]) / size
    return (
        f"{name:14} gated {spent['gated'] * 1e3:6.2f} ms, narrow {spent['narrow'] * 1e3:6.2f}, a "
        f"copy {spent['copy'] * 1e3:5.2f}: {time_more:4.1f} copies more, "
        f"{spent['gated'] / spent['narrow']:.3f} of narrow, "
        f"the first after a step {first_more:4.1f}   gated "
        f"{held['first'] / 1e6:6.2f} MB, narrow {held['narrow'] / 1e6:6.2f}, a copy "
        f"{size / 1e6:6.2f}: {memory_more:4.2f} copies more"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--policy", default="random")
    parser.add_argument("--steps", type=int, default=12, help="of training before the evaluation")
    parser.add_argument("--repeat", type=int, default=40)
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        row = measure(name, arguments.policy, arguments.steps, arguments.repeat, arguments.batch)
        print(row, flush=True)


if __name__ == "__main__":
    main()
