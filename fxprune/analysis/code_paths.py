"""Find the paths through code that is not traced, by running it on real tensors.

They are looked for in training and in evaluation, with other random numbers, with each condition
negated, and with other numbers where the code reads one.
"""

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.answers import AnsweredReads, Answers, Form, RecordedCalls
from fxprune.draws import Draws, seed_all, seed_own
from fxprune.tracing.data_dependent import really_run
from fxprune.tracing.module import modules_of
from fxprune.tracing.regions import region_of
from fxprune.tracing.snapshot import Snapshot

OTHER_ANSWERS = 12
"""The most runs of one module that are given another answer than the real one."""

SEVERAL = 8
"""How many layers a number is taken to choose from: `self.heads[task.item()]`."""

SEEDS = 3
"""The runs with random numbers of their own, in each mode."""

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


def has_its_own_seed() -> bool:
    """Tell whether code that ran after `seeded` has seeded the random numbers itself."""
    # a module that it calls may have been run with another of the seeds
    return not 0 <= torch.initial_seed() - _SEED < SEEDS
