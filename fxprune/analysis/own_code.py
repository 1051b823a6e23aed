"""Modules that keep their Python code, run with labels on each path that the code may take.

Meta tensors have no values. What the code asks of one (`if y.max() > 1:`, `y.tolist()`) is
answered by a run of the same code on real tensors, in the same order. Such a run takes one path
through the code; others are looked for in training and in evaluation, with other random numbers,
with each condition negated, and with other numbers where the code reads one.
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.analysis.answers import (
    AnsweredReads,
    Answers,
    AsksForValuesError,
    Form,
    RecordedCalls,
)
from fxprune.analysis.label_mode import LabelMode
from fxprune.analysis.mentions import may_be_reached
from fxprune.analysis.settled_conditions import SettledConditions
from fxprune.draws import Draws, seed_all, seed_own
from fxprune.rules.base import tensors_in
from fxprune.tracing.data_dependent import really_run
from fxprune.tracing.module import modules_of
from fxprune.tracing.objects import held
from fxprune.tracing.regions import region_of
from fxprune.tracing.snapshot import Snapshot

OTHER_ANSWERS = 12
"""The most runs of one module that are given another answer than the real one."""

SEVERAL = 8
"""How many layers a number is taken to choose from: `self.heads[task.item()]`."""

SEEDS = 3
"""The runs with random numbers of their own, in each mode."""

_ATOMS = (bool, int, float, str, type(None))

_SEED = 0xF00D0000
"""Where the seeds of these begin: numbers that no code seeds with."""


@dataclass(frozen=True)
class CodePath:
    """One path through a module's code: what makes the code take it, and the calls on it.

    Attributes:
        training: whether the user's own modules are in training mode.
        seed: of the random numbers that the code draws.
        answers: what the code asks, with the answers, in order; None where it may not ask.
        calls: a hash of the ATen calls on the path, and of which of the module's tensors they take.
        read: the positions of answers that follow from sizes alone, and are read at any widths.
        again: whether there is a second call, with what the first has left in the module.
    """

    training: bool = False
    seed: int = 0
    answers: tuple[tuple[str, Any], ...] | None = None
    calls: int = 0
    read: frozenset[int] = frozenset()
    again: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what tells paths apart: the mode, the calls, and each condition's outcome."""
        conditions = [
            (asked, answer) for asked, answer in self.answers or () if type(answer) is bool
        ]
        return self.training, self.calls, *conditions


class OwnCode:
    """Run modules that keep their code, with labels, on each path through that code."""

    def __init__(
        self,
        mode: LabelMode,
        real: Mapping[int, Tensor],
        known: Mapping[str, list[CodePath]] | None,
    ) -> None:
        """Take the run's label mode, and for a compact network the code paths of the dense one.

        Args:
            mode: hands each ATen call to its rule.
            real: the network's own tensors, by the id of the meta tensors in their place.
            known: for a compact network, the code paths by the name of the node.
        """
        self.mode, self.context, self.real, self.known = mode, mode.context, real, known

    def run(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module; `name` is that of its node.

        Where it is called again with the same labels in the same state, as on another path of the
        code around it, one of its paths ties no less than all of them.
        """
        context, key = self.context, (name, self._carried(args, kwargs))
        context.read(self.mode.graph, name, ())
        seen = context.explored.get(key, ())
        if context.choose(any(not snapshot.has_changed() for snapshot in seen)):
            paths = (context.code_paths if self.known is None else self.known)[name]
            return self._on_paths(module, paths[-1:], args, kwargs)
        snapshot = Snapshot(module)  # the code around it may set what it does by
        result = self._explored(name, module, args, kwargs)
        context.explored[key] = *seen, snapshot
        return result

    def _carried(self, args: Any, kwargs: Any) -> Any:
        """Describe what a module is given: two calls that are given the same tie the same."""

        def described(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return (type(value), value) if isinstance(value, _ATOMS) else object()
            known = self.context.constant(value) if id(value) not in self.real else value
            families = self.context.of(value)
            labels = [(family.dim, family.labels, family.free) for family in families]
            return value.shape, value.dtype, known, *labels  # tensors are equal as objects here

        return tuple(map(described, pytree.tree_leaves((args, kwargs))))

    def _explored(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module on each path through its code."""
        if self.known is not None and name in self.known:
            return self._on_paths(module, self.known[name], args, kwargs)
        context = self.context
        before, node = context.mark(), context.node
        paths = [CodePath(training=True), CodePath()]
        try:
            result = self._on_paths(module, paths, args, kwargs)
        except AsksForValuesError:
            context.go_back(before)
            context.node, begun = node, context.mark()
            paths = list(code_paths(module, self.real, args, kwargs))
            result = self._on_paths(module, paths, args, kwargs)
            if self._unseen(module):
                known = {path.key for path in paths}
                others = code_paths(module, self.real, args, kwargs, forms=True)
                paths = [*(path for path in others if path.key not in known), *paths]
                context.go_back(begun)
                context.node = node
                result = self._on_paths(module, paths, args, kwargs)
            self._pin_unseen(module, args, kwargs)
        context.code_paths[name] = paths
        return result

    def pin_around(self, module: nn.Module, args: Any, kwargs: Any, why: str) -> None:
        """Pin all that a module has and is given."""
        context = self.context
        near = [*tensors_in((args, kwargs)), *module.parameters(), *module.buffers()]
        labels = [family.labels for tensor in near for family in context.of(tensor)]
        if labels:
            context.pin(torch.cat(labels), why)

    def _on_paths(self, module: nn.Module, paths: list[CodePath], args: Any, kwargs: Any) -> Any:
        """Run a module's code on several paths; return the result of the last one.

        Paths on which the dense network does not run are taken off the list.
        """
        context, results, node = self.context, [], self.context.node
        snapshot = Snapshot(module)  # its code may keep tables that it makes at its first call
        seeds = False
        for path in list(paths):
            before, last = context.mark(), path is paths[-1]
            outer = self.mode.answers  # of the module whose code called this one
            context.node = node
            self.mode.answers = answers = Answers(path.answers or (), read=path.read)
            draws = seeded(path.seed, snapshot.generators)
            try:
                own = next(iter(self.real.values()), None)
                reads = AnsweredReads(self.mode.answers, self._looked_at, own)
                with own_modes(module, path.training), reads, self.mode:
                    first = module(*args, **kwargs)
                    keeps = snapshot.has_changed() if self.known is None else path.again
                    second = self._second(module, path, args, kwargs) if keeps else []
                    results += [*second, first]
                # a module that this one calls may have been run with another of the seeds
                seeds = seeds or not 0 <= torch.initial_seed() - _SEED < SEEDS
                if path.answers is None and Draws(snapshot.generators) != draws:
                    raise AsksForValuesError("the code draws random numbers")
                if answers.missed:
                    del results[-1]
                    raise AsksForValuesError("the code catches that it asks for values")
                if self.known is None:
                    found = replace(path, read=frozenset(answers.constant), again=bool(second))
                    paths[paths.index(path)] = found
            except Exception as error:
                asks = isinstance(error, AsksForValuesError) and path.answers is None
                if asks or last or self.known is not None:
                    raise
                context.go_back(before)
                paths.remove(path)
            finally:
                self.mode.answers = outer
                snapshot.restore()
            if not last:
                del context.products[before[0]["products"] :]
        context.node = node
        if seeds:  # fewer channels would draw other numbers
            self.pin_around(module, args, kwargs, "the code seeds the numbers that it draws")
        for result in results[:-1]:
            self._join(result, results[-1])
        return results[-1]

    def _second(self, module: nn.Module, path: CodePath, args: Any, kwargs: Any) -> list[Any]:
        """Call a module with what its first call has left in it, such as a state that it keeps.

        Returns:
            Its result; none where the dense network cannot be called twice.
        """
        context = self.context
        before = context.mark()
        try:
            return [module(*args, **kwargs)]
        except AsksForValuesError:
            raise
        except Exception:
            if path.again:
                raise
            context.go_back(before)
            return []
        finally:
            del context.products[before[0]["products"] :]

    def _looked_at(self, tensor: Tensor) -> None:
        """Pin the channels of a tensor that becomes numbers of Python's: labels end there."""
        self.context.pin_all([tensor], "the code reads their values in Python")

    def _join(self, other: Any, result: Any) -> None:
        """Couple what a module returns on one path with what it returns on another."""
        context = self.context
        several = [*(one := held(other, Tensor)), *(another := held(result, Tensor))]
        for tensor in several:
            context.use(tensor)
        pairs = list(zip(one, another, strict=False))
        alike = pytree.tree_structure(other) == pytree.tree_structure(result)
        alike = alike and len(one) == len(another)
        if not alike or any(a.shape != b.shape for a, b in pairs):
            context.pin_all(several, "the code returns one thing or another here")
            return
        for a, b in pairs:
            for dim in range(a.dim()):
                ours, theirs = context.along(a, dim), context.along(b, dim)
                context.meet(ours, theirs, "the code may return another tensor here")

    def _unseen(self, module: nn.Module) -> list[str]:
        """Name the parameters that no call has read."""
        known, named = self.context.read_by_calls, module.named_parameters(remove_duplicate=False)
        return [name for name, value in named if id(value) not in known]

    def _pin_unseen(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pin all around a module's code where no path was found to a parameter that it names."""
        unseen = self._unseen(module)
        if not unseen:
            return
        with SettledConditions(module) as settled:
            list(code_paths(module, self.real, args, kwargs))
        for name in unseen:
            if may_be_reached(module, name, settled):
                why = f"no path through the code here was found that uses {name}"
                self.pin_around(module, args, kwargs, why)
                return


def code_paths(
    module: nn.Module, real: Mapping[int, Tensor], args: Any, kwargs: Any, forms: bool = False
) -> Iterator[CodePath]:
    """Find the paths through a module's code; the last is that of evaluation.

    A router hands `torch.where(expert == 2)[0]` to an expert, if there are any. Other `forms` find
    one that the examples do not reach.

    Args:
        module: the module; it is not changed.
        real: what to take for its own tensors, by their ids.
        args: meta tensors, which random ones of the same shape stand for, and what else it takes.
        kwargs: likewise.
        forms: whether results whose shape depends on values are given other shapes, and numbers
            more of other values, in place of other answers to conditions.

    Raises:
        Exception: whatever the code raises in evaluation.
    """

    def taken(training: bool, seed: int, changed: Mapping[int, Any] = {}) -> CodePath:
        answers = Answers(changed=changed)
        seeded(seed, snapshot.generators)
        with (
            own_modes(module, training),
            AnsweredReads(answers),
            RecordedCalls(answers),
            _for_real(module),
        ):
            try:
                again = snapshot.has_changed
                really_run(module, real, args, kwargs, answers.names, again)
            finally:
                snapshot.restore()
        return CodePath(training, seed, tuple(answers.taken), hash(tuple(answers.calls)))

    snapshot = Snapshot(module)
    last = taken(False, 0)
    found = {last.key: last}
    for training in (True, False):
        for seed in range(SEEDS):
            try:
                path = taken(training, seed)
            except Exception:  # such as a batch of one in training
                break
            found.setdefault(path.key, path)
    left = OTHER_ANSWERS
    waiting = deque[tuple[CodePath, dict[int, Any]]]((path, {}) for path in found.values())
    while waiting and left:
        path, changed = waiting.popleft()
        for position, (_, answer) in enumerate(path.answers or ()):
            if position <= max(changed, default=-1):
                continue
            for other in (_other_forms(answer) if forms else _other_answers(answer))[:left]:
                left -= 1
                answers = {**changed, position: other}
                try:
                    another = taken(path.training, path.seed, answers)
                except Exception:  # the code refuses the other answer
                    continue
                if another.key not in found:
                    found[another.key] = another
                    waiting.append((another, answers))  # which may ask more
    del found[last.key]
    yield from found.values()
    yield last


def _other_answers(real: Any) -> tuple[Any, ...]:
    """List other answers than the real one, for which code may take another path."""
    if type(real) is bool:
        return (not real,)
    if type(real) is int:
        return (int(not real),)
    if type(real) is float:
        return -10 * abs(real) - 10, 10 * abs(real) + 10
    return ()


def _other_forms(real: Any) -> tuple[Any, ...]:
    """List other forms of a result: with one row where it has none, with none where it has some.

    Of a number, which may choose one of several layers, list those that `_other_answers` does not.
    """
    if type(real) is int:
        return tuple(number for number in range(2, SEVERAL) if number != real)
    if isinstance(real, Form) and real.shape:
        return (replace(real, shape=(int(not real.shape[0]), *real.shape[1:])),)
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


def seeded(seed: int, generators: Sequence[Any]) -> Draws:
    """Set all random numbers, and those of a module's own generators; return their state."""
    seed_all(_SEED + seed)
    seed_own(generators, seed)
    return Draws(generators)
