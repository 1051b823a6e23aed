"""Runs ATen calls on meta tensors, and hands each to the rule of its op."""

import traceback
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.analysis.aliasing import Aliasing, written
from fxprune.analysis.answers import Answers, AsksForValuesError, Form, asks_for_values
from fxprune.analysis.context import Computed
from fxprune.analysis.shape_functions import SIZED, ResultForm, call_of, known_results, made
from fxprune.registry import instances
from fxprune.rules.base import Call, ModuleTies, Rule, tensors_in

Looks = tuple[bool, list[ResultForm]]
"""Whether an op returns a tuple, and how to make each of its results."""


class LabelMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every ATen call and hands it to the rule of its op.

    Attributes:
        answers: those to code of a module that asks for what is in a tensor; None where no module
            that keeps its code runs.
    """

    def __init__(
        self, aliasing: Aliasing, graph: int, seen: dict[Any, Looks], *, dense: bool
    ) -> None:
        """Note the calls of the graph of this number.

        Args:
            aliasing: notes what shares memory.
            graph: the number.
            seen: what is known of earlier calls.
            dense: whether the network has all of its channels.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.context, self.aliasing, self.graph, self.seen = aliasing.context, aliasing, graph, seen
        self.dense = dense
        self.answers: Answers | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((*args, *kwargs.values()))
        self.context.near = inputs
        if self.answers is not None and asks_for_values(func, args):
            return self._answered(self.answers, func, args, inputs)
        if any(tensor.is_meta for tensor in inputs) and not all(t.is_meta for t in inputs):
            args, kwargs = self.lift((args, kwargs))
        if any(tensor.is_meta for tensor in inputs) and kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("meta")}
        moved = _moved(func)
        before = args
        if moved is not None:
            before = torch.ops.aten.alias(args[0]), *args[1:]
            self.context.carry(before[0], self.context.of(args[0]))
        given = [(x, x.shape, self._along(x)) for x in written(func, (), kwargs)]  # as `out=`
        out = self._run(func, args, kwargs)
        resized = [tensor.shape != shape for tensor, shape, _ in given]  # as `empty(0)`
        for (tensor, *_), grown in zip(given, resized, strict=True):
            if grown:
                self.context.carry(tensor, ())
        self.follow(moved or func, before, kwargs, out)
        for (tensor, _, labels), grown in zip(given, resized, strict=True):
            if self.context.choose(grown, "resized") != grown:
                raise RuntimeError("a tensor that results are written into has another size")
            for held, put in [] if grown else zip(labels, self._along(tensor), strict=True):
                self.context.meet(held, put, "results are written into a tensor of fixed size")
        self.context.near = [*inputs, *tensors_in((out,))]
        return out

    def shortcut(
        self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, bool] | None:
        """Return the result of a layer or function without running it, if its shape is known.

        Returns:
            The result, and whether no argument is a size that depends on the widths. None where
            the call has to run.
        """
        call = call_of(target, args, kwargs)
        look = None if call is None else known_results(*call)
        if call is None or look is None:
            return None
        out = _results(look, call[1])
        self.follow(*call, {}, out)
        return out[0] if look[0] else out, call[0] not in SIZED

    def _answered(
        self, answers: Answers, func: Any, args: tuple[Any, ...], inputs: list[Tensor]
    ) -> Any:
        """Return the answer to a call that reads values, which meta tensors do not have."""
        has_values = not any(tensor.is_meta for tensor in inputs)

        def value() -> Any:
            if not has_values or tensors_in((out := func(*args),)):
                raise AsksForValuesError("the code asks for what is in a tensor")
            return out

        answer = answers.take(func.__name__, value, has_values)
        context = self.context
        if func is torch.ops.aten.index.Tensor and len(inputs) == 2:  # x[mask]: as many as then
            x, mask = inputs
            at = next(i for i, index in enumerate(args[1]) if index is not None)
            shape = (*x.shape[:at], answer.shape[at], *x.shape[at + mask.dim() :])
            out = replace(answer, shape=shape).meta()
            self.follow(func, args, {}, out)
            return out
        context.read(self.graph, func.__name__, inputs)
        if func is torch.ops.aten.equal.default:
            if any(map(context.of, inputs)):
                context.mixes()
        else:
            context.pin_all(inputs, "the code asks for their values")
        return pytree.tree_map(lambda part: part.meta() if isinstance(part, Form) else part, answer)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Hand a call and its result to the rule of its op."""
        context = self.context
        inputs = tensors_in((*args, *kwargs.values()))
        computed = bool(inputs) and all(context.is_parametric(tensor) for tensor in inputs)
        known = len(context.edges)
        rule = rule_of(func)
        if rule is not None:  # also where nothing carries labels: macs are counted all the same
            context.read(self.graph, func.__name__, inputs)
            context.compute((*args, *kwargs.values()), torch.Tag.pointwise not in func.tags)
            self._ask(rule, Call(func, _bind(func, args, kwargs), out, args, kwargs), inputs)
        elif tensors_in((out,)):
            context.pin_all(inputs, f"there is no rule for {func.overloadpacket}")
        self.aliasing.see(func, args, kwargs, out)
        if computed:
            context.computed += context.edges[known:]
            context.tape.append(Computed(func, args, kwargs, out))
            for tensor in tensors_in((out,)):
                context.parametric(tensor)

    def _ask(self, rule: Rule, call: Call, inputs: Sequence[Tensor]) -> None:
        """Hand a call to a rule; one that raises leaves the call as if it had no rule.

        Raises:
            Exception: as the rule, where it did not raise in the dense network.
        """
        context = self.context
        try:
            with torch._C.DisableTorchFunction():  # labels are not what the code asks for
                rule(context, call)
        except AsksForValuesError:
            raise
        except Exception as error:
            if not (self.dense or context.has_chosen("fault")):
                raise
            context.choose(1, "fault")
            context.pin_all(inputs, _fault(rule, error))
            for result in call.results():
                context.carry(result, ())

    def _along(self, tensor: Tensor) -> list[Tensor | None]:
        """Return the labels along each dimension of a tensor."""
        return [self.context.along(tensor, dim) for dim in range(tensor.dim())]

    def lift(self, value: Any) -> Any:
        """Put constants made inside forward on the meta device, beside the tensors they meet."""
        if isinstance(value, Tensor):
            if value.is_meta:
                return value
            meta = to_meta(value)
            self.context.stand_for(meta, value)
            self.context.carry(meta, self.context.of(value))
            return meta
        if isinstance(value, dict):
            return {key: self.lift(part) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self.lift(part) for part in value)
        return value

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op; what was seen before is not run again, since meta ops are slow."""
        resized = torch.Tag.inplace_view in func.tags
        if func.is_view or resized or not kwargs.keys().isdisjoint(("out", "device")):
            return func(*args, **kwargs)
        if not kwargs and (look := known_results(func, args)) is not None:
            return _results(look, args)
        key = _key((func, args, tuple(kwargs.items())))
        if key is None:
            return func(*args, **kwargs)
        if key not in self.seen:
            out = func(*args, **kwargs)
            parts = out if isinstance(out, tuple) else (out,)
            if all(isinstance(part, Tensor) and part.is_meta for part in parts):
                self.seen[key] = isinstance(out, tuple), [_form(part, args) for part in parts]
            return out
        return _results(self.seen[key], args)


def _fault(rule: Rule, error: Exception) -> str:
    """Say which rule raised what, and in which line of its file."""
    file = type(rule).__call__.__code__.co_filename
    lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == file]
    place = "".join(f" ({Path(file).name}:{line})" for line in lines[-1:])
    what = " ".join(str(error).split())[:200]
    return f"its rule {type(rule).__name__}{place} raises {type(error).__name__}: {what}"


def _form(result: Tensor, args: tuple[Any, ...]) -> ResultForm:
    same = next((index for index, value in enumerate(args) if value is result), None)
    return (result.shape, result.stride(), result.dtype) if same is None else same


def _results(look: Looks, args: tuple[Any, ...]) -> Any:
    """Make the results of a call from their description."""
    several, forms = look
    parts = tuple(made(form, args) for form in forms)
    return parts if several else parts[0]


def rule_of(func: Any) -> Rule | None:
    """Find the rule of an ATen op; None where it has none."""
    found = _rule_in_folder(func)
    return _look_up(func, rules()) if found is None else found


@cache
def _rule_in_folder(func: Any) -> Rule | None:
    return _look_up(func, instances("fxprune.rules", Rule, others=()))  # type: ignore[type-abstract]


def _look_up(func: Any, known: Mapping[Any, Rule]) -> Rule | None:
    for key in (func, func.overloadpacket, func._schema.name, *func.tags):
        if key in known:
            return known[key]
    plain = None if torch.Tag.inplace_view in func.tags else _out_of_place(func)
    return None if plain is None else _look_up(plain, known)


@cache
def _moved(func: Any) -> Any:
    """Find the op that returns what another one does in place to a shape, as `unsqueeze_` does."""
    if torch.Tag.inplace_view not in func.tags or rule_of(func) is not None:
        return None
    found = _out_of_place(func)
    return None if found is None or rule_of(found) is None else found


def _out_of_place(func: Any) -> Any:
    """Find the op that returns what another one writes into its operand: `abs` for `abs_`."""
    packet = getattr(torch.ops.aten, func.overloadpacket.__name__.removesuffix("_"), None)
    if packet in (None, func.overloadpacket) or func.namespace != "aten":
        return None
    known = packet.overloads()
    return getattr(packet, func._overloadname if func._overloadname in known else known[0])


def rules() -> Mapping[Any, Rule]:
    """Map each op to its rule."""
    return instances("fxprune.rules", Rule)  # type: ignore[type-abstract]


def ties() -> Mapping[Any, ModuleTies]:
    """Map each module class to what it says of its parameters."""
    return instances("fxprune.rules", ModuleTies)  # type: ignore[type-abstract]


def _bind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Bind a call's arguments to the names of the op's schema; absent ones have their defaults."""
    bound = _defaults(func) | kwargs
    bound.update(zip(bound, args, strict=False))
    return bound


@cache
def _defaults(func: Any) -> dict[str, Any]:
    """Return the op's arguments in their order, each with its default or None."""
    return {
        argument.name: argument.default_value if argument.has_default_value() else None
        for argument in func._schema.arguments
    }


def _key(value: Any) -> Any:
    """Make a key that tells calls apart; None where something in a call cannot be compared."""
    if isinstance(value, Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, (list, tuple)):
        parts = tuple(_key(part) for part in value)
        return None if None in parts else parts
    return _NONE if value is None else value if isinstance(value, Hashable) else None


_NONE = object()


def to_meta(tensor: Tensor) -> Tensor:
    """Return a meta tensor that looks like another."""
    if tensor.is_contiguous():  # much the quicker way
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta", requires_grad=False)
