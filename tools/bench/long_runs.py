"""Watch memory and open files over long runs; both have to stay flat.

python -m tools.bench.long_runs --steps 10000 --exports 200 --widths 700
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import fxprune
from tools.campaigns.mutants import build_model


def memory() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch(what: str, times: int, work: Callable[[int], None]) -> None:
    """Do the work again and again, and print memory and files after each fifth."""
    shown = []
    for number in range(times):
        work(number)
        if (number + 1) % max(times // 5, 1) == 0:
            shown.append(f"{memory():.0f} MB, {len(list(Path('/proc/self/fd').iterdir()))} files")
    print(f"{times} {what}: {'; '.join(shown)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--exports", type=int, default=200)
    parser.add_argument("--widths", type=int, default=700)
    given = parser.parse_args()
    torch.set_num_threads(1)
    example = (torch.zeros(2, 1, 8, 8),)
    gated = fxprune.instrument(build_model(), example, "random", "keep=0.5")
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01, momentum=0.9)
    fxprune.attach(gated, optimizer)
    images = torch.randn(4, 1, 8, 8)

    def step(_: int) -> None:
        optimizer.zero_grad()
        gated(images).square().mean().backward()
        optimizer.step()

    def widths(number: int) -> None:
        gated.spend((0.5, 0.7, 1.0)[number % 3])
        step(number)

    watch("steps", given.steps, step)
    watch("changes of widths", given.widths, widths)
    with tempfile.TemporaryDirectory() as folder:
        # Another one: what was trained to return 0 has rounding alone left to compare.
        fresh = fxprune.instrument(build_model(), example, "random", "keep=0.5")
        compact = fxprune.shrink(fresh.eval())
        path = Path(folder) / "a.onnx"
        watch(
            "exports", given.exports, lambda _: fxprune.export_onnx(compact, example, path) and None
        )


if __name__ == "__main__":
    main()
