"""Modules that keep their Python code, run with labels on each way that their code may take.

Meta tensors have no values. What the code asks of one (`if y.max() > 1:`, `y.tolist()`) is
answered by a run of the same code on real tensors, in the same order. Such a run takes one way
through the code; the others are taken too, as far as they are found: in training and in
evaluation, with other random numbers, with each condition turned round, and with other numbers
where the code reads one.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.answers import Answers, AsksForValuesError, Looking, Noting
from fxprune.analysis.label_mode import LabelMode
from fxprune.analysis.mentions import ConstantArguments, may_be_reached
from fxprune.rules.base import tensors_in
from fxprune.tracing.data_dependent import really_run
from fxprune.tracing.module import modules_of
from fxprune.tracing.regions import region_of
from fxprune.tracing.side_effects import Draws
from fxprune.tracing.snapshot import Snapshot

TURNED = 12
"""Answers that are turned round, at most, in one module."""

SEEDS = 3
"""Ways that are tried where the code draws random numbers."""


@dataclass(frozen=True)
class Way:
    """How a module's code is run.

    Attributes:
        training: whether the user's own modules are in training mode.
        seed: of the random numbers that the code draws.
        answers: what the code asks, and what it is told, in order; None where it may not ask.
        calls: the ATen calls that it makes then, and on which of the module's tensors, as a hash.
        read: the places of answers that tensors of sizes alone give, at any widths.
    """

    training: bool = False
    seed: int = 0
    answers: tuple[tuple[str, Any], ...] | None = None
    calls: int = 0
    read: frozenset[int] = frozenset()

    @property
    def turns(self) -> tuple[Any, ...]:
        """Return what tells a way from another: its calls, the conditions and what came of them."""
        conditions = [(asked, told) for asked, told in self.answers or () if type(told) is bool]
        return self.training, self.calls, *conditions


class OwnCode:
    """Run modules that keep their code, with labels, on each way that their code takes."""

    def __init__(
        self, mode: LabelMode, real: Mapping[int, Tensor], known: Mapping[str, list[Way]] | None
    ) -> None:
        """Take the run's label mode, and for a compact network the ways of the dense one.

        Args:
            mode: hands each ATen call to its rule.
            real: the network's own tensors, by the id of the meta tensors in their place.
            known: the ways by the name of the node, where they are known.
        """
        self.mode, self.context, self.real, self.known = mode, mode.context, real, known

    def run(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module; `name` is that of its node."""
        if self.known is not None and name in self.known:
            return self._on_ways(module, self.known[name], args, kwargs)
        context = self.context
        before, node, draws = context.mark(), context.node, seeded(0)
        taken = [Way(training=True), Way()]
        try:
            result = self._on_ways(module, taken, args, kwargs)
            if Draws() != draws:
                raise AsksForValuesError("the code draws random numbers")
        except AsksForValuesError:
            context.go_back(before)
            context.node = node
            taken = list(ways(module, self.real, args, kwargs))
            result = self._on_ways(module, taken, args, kwargs)
            self._pin_unseen(module, args, kwargs)
        context.ways[name] = taken
        return result

    def pin_around(self, module: nn.Module, args: Any, kwargs: Any, why: str) -> None:
        """Pin all that a module has and is given."""
        context = self.context
        near = [*tensors_in((args, kwargs)), *module.parameters(), *module.buffers()]
        labels = [family.labels for tensor in near for family in context.of(tensor)]
        if labels:
            context.pin(torch.cat(labels), why)

    def _on_ways(self, module: nn.Module, taken: list[Way], args: Any, kwargs: Any) -> Any:
        """Run a module's code on several ways; the result is that of the last one.

        Ways on which the dense network does not run are taken off the list.
        """
        context, results, node = self.context, [], self.context.node
        snapshot = Snapshot(module)  # its code may keep tables that it makes at its first call
        for way in list(taken):
            before, last = context.mark(), way is taken[-1]
            outer = self.mode.answers  # of code whose part this is
            context.node = node
            self.mode.answers = answers = Answers(way.answers or (), read=way.read)
            seeded(way.seed)
            try:
                own = next(iter(self.real.values()), None)
                looking = Looking(self.mode.answers, self._looked_at, own)
                with own_modes(module, way.training), looking, self.mode:
                    results.append(module(*args, **kwargs))
                if answers.missed:
                    del results[-1]
                    raise AsksForValuesError("the code catches that it asks for values")
                if self.known is None:
                    taken[taken.index(way)] = replace(way, read=frozenset(answers.constant))
            except Exception as error:
                asks = isinstance(error, AsksForValuesError) and way.answers is None
                if asks or last or self.known is not None:
                    raise
                context.go_back(before)
                taken.remove(way)
            finally:
                self.mode.answers = outer
                snapshot.restore()
            if not last:
                del context.products[before[0]["products"] :]
        context.node = node
        for result in results[:-1]:
            self._join(result, results[-1])
        return results[-1]

    def _looked_at(self, tensor: Tensor) -> None:
        """Pin the channels of a tensor that becomes numbers of Python's: labels end there."""
        self.context.pin_all([tensor], "the code reads their values in Python")

    def _join(self, other: Any, result: Any) -> None:
        """Couple what a module returns on one way with what it returns on another."""
        context = self.context
        pairs = list(zip(tensors_in((other,)), tensors_in((result,)), strict=False))
        alike = pytree.tree_structure(other) == pytree.tree_structure(result)
        if not alike or any(a.shape != b.shape for a, b in pairs):
            several = tensors_in((other, result))
            context.pin_all(several, "the code returns one thing or another here")
            return
        for a, b in pairs:
            for dim in range(a.dim()):
                ours, theirs = context.along(a, dim), context.along(b, dim)
                if ours is not None or theirs is not None:
                    context.meet(ours, theirs, "the code may return another tensor here")

    def _pin_unseen(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pin all around a module's code where no way was found to a parameter that it names."""
        unseen = [
            name
            for name, parameter in module.named_parameters()
            if id(parameter) not in self.context.read_by_calls
        ]
        if not unseen:
            return
        with ConstantArguments(module) as constant:
            list(ways(module, self.real, args, kwargs))
        for name in unseen:
            if may_be_reached(module, name, constant):
                why = f"no way through the code here was found that uses {name}"
                self.pin_around(module, args, kwargs, why)
                return


def ways(module: nn.Module, real: Mapping[int, Tensor], args: Any, kwargs: Any) -> Iterator[Way]:
    """Find the ways that a module's code takes; the last is that of evaluation.

    Args:
        module: the module; it is not changed.
        real: what to take for its own tensors, by their ids.
        args: meta tensors, which random ones of the same shape stand for, and what else it takes.
        kwargs: likewise.

    Raises:
        Exception: whatever the code raises in evaluation.
    """

    def taken(training: bool, seed: int, turned: Mapping[int, Any] = {}) -> Way:
        answers = Answers(turned=turned)
        seeded(seed)
        with own_modes(module, training), Looking(answers), Noting(answers), _for_real(module):
            try:
                really_run(module, real, args, kwargs, answers.names)
            finally:
                snapshot.restore()
        return Way(training, seed, tuple(answers.taken), hash(tuple(answers.calls)))

    snapshot = Snapshot(module)
    last = taken(False, 0)
    found = {last.turns: last}
    for training in (True, False):
        for seed in range(SEEDS):
            try:
                way = taken(training, seed)
            except Exception:  # such as a batch of one in training
                break
            found.setdefault(way.turns, way)
    left = TURNED
    for way in list(found.values()):
        for place, (_, value) in enumerate(way.answers or ()):
            for other in _turned(value)[:left]:
                left -= 1
                try:
                    turned = taken(way.training, way.seed, {place: other})
                except Exception:  # the code refuses what is turned round
                    continue
                found.setdefault(turned.turns, turned)
    del found[last.turns]
    yield from found.values()
    yield last


def _turned(told: Any) -> tuple[Any, ...]:
    """List other answers than the one that was told, for which code may take another way."""
    if type(told) is bool:
        return (not told,)
    if type(told) is int:
        return (int(not told),)
    if type(told) is float:
        return -10 * abs(told) - 10, 10 * abs(told) + 10
    return ()


class own_modes:  # noqa: N801 - used as a function
    """Set the mode that the user's own modules see; PyTorch's stay in evaluation."""

    def __init__(self, module: nn.Module, training: bool) -> None:
        self._training = training
        self._own = [
            part
            for part in modules_of(module).values()
            if not type(part).__module__.startswith("torch.")
        ]

    def __enter__(self) -> None:
        self._before = [part.training for part in self._own]
        for part in self._own:
            part.training = self._training

    def __exit__(self, *_: object) -> None:
        for part, mode in zip(self._own, self._before, strict=True):
            part.training = mode


@contextlib.contextmanager
def _for_real(module: nn.Module) -> Iterator[None]:
    """Let regions in a module run the code of their graphs, while this lasts."""
    regions = [r for part in modules_of(module).values() if (r := region_of(part)) is not None]
    runners = [region.runner for region in regions]
    for region in regions:
        region.runner = None
    try:
        yield
    finally:
        for region, runner in zip(regions, runners, strict=True):
            region.runner = runner


def seeded(seed: int) -> Draws:
    """Set all random numbers; return their state."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return Draws()
