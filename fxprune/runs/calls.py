"""How a network's inputs are handed over, as text: `{"args": [{"list": [{"tensor": 0}, …`.

Every value is an object with one key: `tensor` with the number of an input, `list`, `tuple`,
`dict` with text keys, or `value` with a number, a text, true, false or null.
"""

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxprune.errors import OptionError, RunError, described
from fxprune.tracing.signature import Signature

_DEEPEST = 16
"""Containers inside each other."""


def to_text(signature: Signature | None) -> str | None:
    """Write how the inputs are handed over; None where they are given one by one.

    Raises:
        RunError: an option is no number, text, list, tuple or dict.
    """
    if signature is None:
        return None
    tensors = [_Input(number) for number in range(len(signature.names))]
    args, kwargs = signature.unflatten(tensors)
    return json.dumps({"args": [_written(x) for x in args], "kwargs": _written(kwargs)})


def from_text(
    text: str | None, tensors: Sequence[Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read what `to_text` wrote, as positional arguments and keywords with these tensors in them.

    Raises:
        OptionError: the text is damaged.
    """
    if text is None:
        return tuple(tensors), {}
    try:
        call = json.loads(text)
        args = tuple(_read(x, tensors, 0) for x in call["args"])
        kwargs = _read(call["kwargs"], tensors, 0)
        if call.keys() != {"args", "kwargs"} or not isinstance(kwargs, dict):
            raise ValueError("it has other fields")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise OptionError(f"cannot read how the inputs are given: {error}") from error
    return args, kwargs


class _Input:
    """Stands for the tensor of this number."""

    def __init__(self, number: int) -> None:
        self.number = number


def _written(value: Any) -> dict[str, Any]:
    if isinstance(value, _Input):
        return {"tensor": value.number}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_written(part) for part in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _written(part) for key, part in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise RunError(
        f"an option of forward is {described(value)}, which cannot be written",
        why="a file holds numbers, texts, lists, tuples and dicts",
        do="leave it at its default, or give one of these",
    )


def _read(value: Any, tensors: Sequence[Tensor], depth: int) -> Any:
    ((kind, held),) = value.items()
    if depth > _DEEPEST:
        raise ValueError("it is too deep")
    if kind == "tensor":
        if type(held) is not int or held < 0:
            raise ValueError("no number of an input")
        return tensors[held]
    if kind in ("list", "tuple"):
        parts = [_read(part, tensors, depth + 1) for part in held]
        return parts if kind == "list" else tuple(parts)
    if kind == "dict":
        return {key: _read(part, tensors, depth + 1) for key, part in held.items()}
    if kind != "value" or not (held is None or type(held) in (bool, int, float, str)):
        raise ValueError(f"it holds {kind}")
    return held
