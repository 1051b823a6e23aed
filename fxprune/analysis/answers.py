"""Answers to code that reads values of tensors (`if y.max() > 1:`), which meta tensors lack.

A run on real tensors records each answer; a run on meta tensors is given the same ones in order.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.rules.base import tensors_in
from fxprune.tracing.example import type_name
from fxprune.tracing.user_questions import INTERNAL

_READS = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})
"""Methods that hand values to Python without an ATen call."""

_UNTAGGED = frozenset({"torchvision::nms"})
"""Calls whose result's shape depends on values, and that PyTorch does not know as such."""


class AsksForValuesError(RuntimeError):
    """The code reads a value of a meta tensor, and no answer was recorded for it."""


class Answers:
    """Records the answers of a run on real tensors, or gives recorded ones.

    For example, `if y.max() > 1:` records ("_local_scalar_dense.default", True); a run on
    meta tensors that makes the same call is given True, and one that makes another is refused.

    Attributes:
        taken: each question (the name of the call) with its answer, in order.
        calls: the ATen calls made on real tensors, with the names of the module's own tensors.
        names: those names by the ids that the tensors have in this run.
        missed: whether a question had no recorded answer; the code may have caught the error.
        constant: positions of recorded answers that a tensor with values gave again.
    """

    def __init__(
        self,
        known: tuple[tuple[str, Any], ...] | None = None,
        changed: Mapping[int, Any] = {},
        read: frozenset[int] = frozenset(),
    ) -> None:
        """Give recorded answers, or record them.

        Args:
            known: recorded answers to give; None to record.
            changed: by position, answers to give in place of the real ones while recording.
            read: positions at which a tensor with values is read in place of the recorded answer.
        """
        self._known, self._changed, self._read = known, changed, read
        self.constant: set[int] = set()
        self.taken: list[tuple[str, Any]] = []
        self.calls: list[Any] = []
        self.names: dict[int, str] = {}
        self.missed = False

    def take(self, asked: str, value: Callable[[], Any], has_values: bool = False) -> Any:
        """Return the answer to the next question.

        Args:
            asked: the name of the call.
            value: reads the answer from the tensors.
            has_values: whether these are no meta tensors.

        Raises:
            AsksForValuesError: another question was recorded at this position, or none.
        """
        position = len(self.taken)
        if self._known is None:
            found = self._changed[position] if position in self._changed else value()
        elif position < len(self._known) and self._known[position][0] == asked:
            found = self._known[position][1]
            if position in self._read and has_values:
                found = value()  # such as torch.tensor(x.shape), of a network of other widths
            elif has_values and type(found) in (int, float, list) and value() == found:
                self.constant.add(position)
        else:
            self.missed = True
            raise AsksForValuesError("the code takes another path on real tensors")
        self.taken.append((asked, found))
        return found

    def is_changed(self, position: int) -> bool:
        """Tell whether another answer than the real one is given at a position."""
        return position in self._changed


class RecordedCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the answers of the ATen calls in a run on real tensors."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answers = answers

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        own = (self.answers.names.get(id(tensor)) for tensor in tensors_in(args))
        self.answers.calls.append((func, *own))
        out = func(*args, **kwargs)
        if not asks_for_values(func, args):
            return out
        position = len(self.answers.taken)
        answer = self.answers.take(func.__name__, lambda: pytree.tree_map(_form, out))
        if torch.Tag.data_dependent_output in func.tags:
            return answer
        return answer.zeros(out.device) if self.answers.is_changed(position) else out


_DEVICE_READS = frozenset(
    getattr(Tensor, name).__get__ for name in ("device", "is_cpu", "is_cuda", "is_meta")
)
"""Attributes that tell where a tensor is; code may take another path on another device."""


_FOLDING = frozenset({nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__})
"""What PyTorch makes other calls of where its input is contiguous, as one of one channel is."""


class AnsweredReads(TorchFunctionMode):
    """Answers the methods that hand values to Python without an ATen call.

    The user's code sees meta tensors on the device of the network's own.
    """

    def __init__(
        self,
        answers: Answers,
        at: Callable[[Tensor], None] = lambda _: None,
        own: Tensor | None = None,
    ) -> None:
        """Take the answers, and what stands in for values and devices.

        Args:
            answers: where answers are recorded or come from.
            at: called with each tensor whose values are read.
            own: one of the network's own tensors, on whose device meta tensors seem to be.
        """
        super().__init__()
        self.answers, self._at, self._own = answers, at, own

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _READS:
            self._at(args[0])
            values = not args[0].is_meta
            return self.answers.take(func.__name__, lambda: func(*args, **(kwargs or {})), values)
        if func in _DEVICE_READS and self._own is not None and args[0].is_meta:
            asks = sys._getframe(1).f_code.co_filename
            return func(args[0] if asks.startswith(INTERNAL) else self._own)
        if func is Tensor.type and self._own is not None and args[0].is_meta and not args[1:]:
            return type_name(args[0], self._own.device)
        if func in _FOLDING and args and isinstance(args[0], Tensor) and args[0].is_meta:
            args = args[0].contiguous(), *args[1:]
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Form:
    """The shape and dtype of a tensor whose shape depends on values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def meta(self) -> Tensor:
        """Return a meta tensor of this form."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def zeros(self, device: torch.device) -> Tensor:
        """Return a tensor of this form that has values; as positions they are valid ones."""
        return torch.zeros(self.shape, dtype=self.dtype, device=device)


def asks_for_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Tell whether the result of an ATen call, or its shape, depends on what is in its tensors."""
    if torch.Tag.data_dependent_output in func.tags or func._schema.name in _UNTAGGED:
        return True
    if func is torch.ops.aten.index.Tensor:
        return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


def _form(value: Any) -> Any:
    return Form(tuple(value.shape), value.dtype) if isinstance(value, Tensor) else value
