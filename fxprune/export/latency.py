"""Latency budgets: widths at which the compact ONNX file takes a share of the dense file's time.

What a channel costs in time depends on kernels, caches and threads, so it is measured, on the
machine that does the pruning. The model of it is small: x = sum of p_g * u_g, where u_g in [0, 1]
is how far group g is above its least width and p_g the group's share of the time that narrowing
saves; and one curve from x to seconds, linear between measured points. Measured are the dense
network and the narrowest one (the ends of the curve), the dense one with each group, or bundle of
neighbouring groups, narrowed alone (its p), and then the widths that the curve says are right:
each of these is a new point of the curve, until one is close enough.
"""

import hashlib
import itertools
import math
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fxprune.bank.exchange import Chosen
from fxprune.budget.budget import Budget
from fxprune.budget.widths import allowed_widths
from fxprune.channels.cost import CostModel, Widths
from fxprune.channels.graph import Layout
from fxprune.equivalence import fresh_inputs
from fxprune.errors import BudgetError, RunError
from fxprune.export.onnx import export_onnx, latency
from fxprune.files import read_json, write_json
from fxprune.gated.module import GatedModule
from fxprune.passes import Program, apply

TOLERANCE = 0.05
"""How far the measured latency may be from the budget's, as a share of the latter."""

AIMS = (1.0, 1.04, 1.1, 1.2, 0.96, 0.9)
"""What the curve is asked for, in shares of the budget: the first that leads to other widths than
those tried. The curve is rough where widths are few; only what is measured is believed."""

BUNDLES = 8
CORRECTIONS = 10
LEAST_SHARE = 0.1  # of what its macs would say, that a group's measured p is not below
ROUNDS, SECONDS = 8, 0.04  # of measuring; the least of the rounds' medians counts

Measure = Callable[[Widths], float]
"""The latency at some widths, seconds."""


@dataclass(frozen=True)
class Choice:
    """The widths that were chosen, and what was measured.

    Attributes:
        budget: the latency budget with its widths.
        dense: latency of the dense network, seconds.
        chosen: latency at the widths, seconds.
        measured: latency by widths, seconds; all that were needed, the cached ones included.
    """

    budget: Budget
    dense: float
    chosen: float
    measured: Mapping[Widths, float]

    @property
    def share(self) -> float:
        """The measured share of the dense network's latency."""
        return self.chosen / self.dense

    @property
    def met(self) -> bool:
        """Whether that is the budget's within the tolerance; it is less where widths are few."""
        return abs(self.share / self.budget.value - 1) <= TOLERANCE


def choose(budget: Budget, layout: Layout, cost: CostModel, measure: Measure) -> Choice:
    """Finds widths whose latency is the budget's; 2 + BUNDLES + CORRECTIONS measurements at most.

    Groups keep about the same share of their channels, as in `uniform_widths`.

    Args:
        budget: a latency budget.
        layout: the channel groups.
        cost: the macs by which the groups of a bundle share what was measured of it.
        measure: see `Bench`; called at most once for each widths.

    Raises:
        BudgetError: the narrowest network takes longer than the budget.
    """
    allowed = allowed_widths(budget, layout)
    dense, least = layout.sizes, tuple(widths[0] for widths in allowed)
    most = tuple(widths[-1] for widths in allowed)
    measured = {dense: measure(dense)}
    target = budget.value * measured[dense]
    if budget.value == 1 or least == most:
        if most != dense:
            measured[most] = measure(most)
        if budget.value < 1 and (most == dense or measured[most] > (1 + TOLERANCE) * target):
            raise _impossible(budget, measured[most], measured[dense])
        return Choice(replace(budget, widths=most), measured[dense], measured[most], measured)
    measured[least] = measure(least)
    if measured[least] > (1 + TOLERANCE) * target:
        raise _impossible(budget, measured[least], measured[dense])
    parts = _parts(allowed, cost, measured, measure)

    def height(widths: Widths) -> float:
        ways = zip(widths, least, dense, parts, strict=True)
        return sum(p * (w - low) / (high - low) for w, low, high, p in ways if high > low)

    tried = [dense, least]
    for _ in range(CORRECTIONS):
        curve = sorted((height(widths), measured[widths]) for widths in tried)
        aims = (_climb(allowed, height, _inverse(curve, aim * target)) for aim in AIMS)
        untried = [widths for widths in aims if widths not in tried]
        if not untried:
            break
        widths = untried[0]
        if widths not in measured:
            measured[widths] = measure(widths)
        tried.append(widths)
        if abs(measured[widths] / target - 1) <= TOLERANCE:
            break
    fitting = [
        widths
        for widths in tried
        if measured[widths] <= (1 + TOLERANCE) * target
        and all(width <= top for width, top in zip(widths, most))
    ]
    best = min(fitting, key=lambda widths: abs(measured[widths] - target))
    return Choice(replace(budget, widths=best), measured[dense], measured[best], measured)


def _parts(
    allowed: list[list[int]], cost: CostModel, measured: dict[Widths, float], measure: Measure
) -> list[float]:
    """The p of each group: its share of what narrowing saves; the sum is 1."""
    dense = cost.sizes
    middle = [widths[(len(widths) - 1) // 2] for widths in allowed]

    def narrowed(groups: range) -> Widths:
        return tuple(middle[g] if g in groups else size for g, size in enumerate(dense))

    saved = [cost.dense_macs - cost.macs(narrowed(range(g, g + 1))) for g in range(len(dense))]
    length = -(-len(dense) // BUNDLES)
    parts = [0.0] * len(dense)
    for first in range(0, len(dense), length):
        bundle = range(first, min(first + length, len(dense)))
        widths = narrowed(bundle)
        if widths not in measured:
            measured[widths] = measure(widths)
        gain = max(measured[dense] - measured[widths], 0.0)
        macs = max(sum(saved[g] for g in bundle), 1)
        for g in bundle:
            parts[g] = gain * saved[g] / macs
    total, all_macs = sum(parts) or 1.0, max(sum(saved), 1)
    floored = [max(p / total, LEAST_SHARE * s / all_macs) for p, s in zip(parts, saved)]
    return [part / (sum(floored) or 1.0) for part in floored]


def _inverse(curve: list[tuple[float, float]], target: float) -> float:
    """Where a curve of (x, seconds), rising in x, reaches the target; noise is flattened."""
    xs = [x for x, _ in curve]
    seconds = list(itertools.accumulate((t for _, t in curve), max))
    for (x0, t0), (x1, t1) in itertools.pairwise(zip(xs, seconds)):
        if t0 <= target < t1:
            return x0 + (x1 - x0) * (target - t0) / (t1 - t0)
    return xs[0] if target < seconds[0] else xs[-1]


def _climb(allowed: list[list[int]], height: Callable[[Widths], float], limit: float) -> Widths:
    """The widest widths below a height, all groups rising together as long as each can."""
    widths = [steps[0] for steps in allowed]
    climbs = sorted(
        (step / steps[-1], group, step) for group, steps in enumerate(allowed) for step in steps[1:]
    )
    stopped = set()
    for _, group, step in climbs:
        if group in stopped:
            continue
        before, widths[group] = widths[group], step
        if height(tuple(widths)) > limit + 1e-9:
            widths[group] = before
            stopped.add(group)
    return tuple(widths)


class Bench:
    """Measures networks of any widths in ONNX Runtime, on the CPU, one example at a time.

    Each network is timed in turns with the dense one, and what counts is their quotient times the
    dense network's first time, because the speed of a machine drifts by more than what is to be
    measured. What was measured is kept in a file for each network, version of ONNX Runtime, number
    of threads, shape of the inputs and machine; delete the folder to measure anew. To be used in
    a `with`, which removes the networks that were exported.

    Attributes:
        measurements: how many were made, and not found in the file.
    """

    def __init__(
        self, program: Program, inputs: tuple[Tensor, ...], folder: Path | None = None
    ) -> None:
        """Takes the network over.

        Args:
            program: the coupled network with all channels gated; see `passes/gate`.
            inputs: example inputs; the first example of each is what is measured.
            folder: of the file; by default `fxprune/latency` in the user's cache directory.
        """
        gated = program.module
        assert isinstance(gated, GatedModule)
        self.gated, self.inputs = gated.cpu().eval(), tuple(tensor.cpu() for tensor in inputs)
        folder = cache_folder() if folder is None else folder
        self.path = folder / f"{self._key()}.json"
        self.known = _read(self.path)
        self.measurements = 0
        self._folder = tempfile.TemporaryDirectory()
        self._one = fresh_inputs(self.inputs, 1, torch.Generator().manual_seed(0))

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the networks."""
        self._folder.cleanup()

    def __call__(self, widths: Widths) -> float:
        """The latency at the widths, seconds.

        Raises:
            ExportError, ParityError: as `fxprune.export_onnx`.
            RunError: the file cannot be written, or is damaged.
        """
        name = "/".join(map(str, widths))
        if name not in self.known:
            self.known[name] = self._measured(widths)
            self.measurements += 1
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, self.known)
        return self.known[name]

    def _measured(self, widths: Widths) -> float:
        sizes = self.gated.channels.layout.sizes
        dense = Path(self._folder.name) / "dense.onnx"
        if not dense.exists():
            self._export(sizes, dense)
        if widths == sizes:
            return self._least([dense])[0]
        compact = dense.with_name("compact.onnx")
        self._export(widths, compact)
        times = self._least([dense, compact])
        return times[1] / times[0] * self(sizes)

    def _least(self, paths: list[Path]) -> list[float]:
        rounds = [[latency(p, self._one, seconds=SECONDS) for p in paths] for _ in range(ROUNDS)]
        return [min(times) for times in zip(*rounds)]

    def _export(self, widths: Widths, path: Path) -> None:
        offsets = self.gated.channels.layout.offsets
        rows = [torch.arange(start, start + width) for start, width in zip(offsets, widths)]
        self.gated.settle(Chosen(torch.cat(rows), widths))
        export_onnx(apply("shrink", Program(self.gated, ())).module, self.inputs, path)

    def _key(self) -> str:
        graph, channels = self.gated.graph, self.gated.channels
        shapes = [(tuple(tensor.shape[1:]), str(tensor.dtype)) for tensor in self.inputs]
        here = (platform.node(), platform.machine(), platform.processor(), os.cpu_count())
        parts = (str(graph), channels.macs_terms, channels.params_terms, shapes, here)
        tools = (version("onnxruntime"), torch.__version__, torch.get_num_threads())
        return hashlib.sha256(repr((parts, tools)).encode()).hexdigest()[:20]


def _read(path: Path) -> dict[str, float]:
    """What was measured, seconds by widths.

    Raises:
        RunError: the file is damaged.
    """
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(
        isinstance(seconds, float) and 0 < seconds < math.inf for seconds in known.values()
    ):
        raise RunError(
            f"cannot read {path}",
            why="it is damaged: it does not hold seconds by widths",
            do="delete it, to measure anew",
        )
    return known


def cache_folder() -> Path:
    """Where measurements are kept: `fxprune/latency` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fxprune" / "latency"


def _impossible(budget: Budget, least: float, dense: float) -> BudgetError:
    return BudgetError(
        f"the budget {budget} cannot be met",
        why=f"with the smallest widths the network takes {least / dense:.3f} of the dense one's "
        f"time, measured in ONNX Runtime: {1e3 * least:.3g} of {1e3 * dense:.3g} ms",
        do="raise the budget, or lower round_to",
    )
