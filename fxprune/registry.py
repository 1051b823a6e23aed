"""Plug-ins: op rules, policies and passes are each one file in a folder, found by looking there.

A plug-in is a class that derives from its folder's base class and names itself in `keys`. Options
are the fields of a (frozen) dataclass; their text form is `name{field=value,other=value}`.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Hashable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from fxprune.errors import OptionError, brief, described


class Plugin(Protocol):
    """What a plug-in class must have: the keys under which it is found."""

    keys: ClassVar[tuple[Hashable, ...]]


P = TypeVar("P", bound=Plugin)


def collect(package: str, base: type[P]) -> Mapping[Hashable, type[P]]:
    """Import every module of `package` and map each key to the concrete subclass of `base`.

    Args:
        package: dotted name of the folder, for example `"fxprune.policies"`.
        base: the folder's base class; abstract subclasses are left out.

    Returns:
        A read-only mapping, in alphabetical order of the modules.

    Raises:
        OptionError: two plug-ins share a key.
    """
    found: dict[Hashable, type[P]] = {}
    folder = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            if not (inspect.isclass(value) and issubclass(value, base)):
                continue
            if inspect.isabstract(value) or value.__module__ != module.__name__ or value is base:
                continue
            for key in value.keys:
                if key in found:
                    raise OptionError(
                        f"two plug-ins of {package} are called {key}",
                        at=f"{found[key].__module__} and {value.__module__}",
                        do="give one of them another key",
                    )
                found[key] = value
    return MappingProxyType(found)


def to_text(plugin: Any) -> str:
    """Write a plug-in with the options that differ from their defaults, to be repeated by it.

    The first of its keys is its name.
    """
    changed = [
        f"{field.name}={getattr(plugin, field.name)}"
        for field in dataclasses.fields(plugin)
        if getattr(plugin, field.name) != field.default
    ]
    name = str(type(plugin).keys[0])
    return name + (f"{{{','.join(changed)}}}" if changed else "")


def from_text(text: str, known: Mapping[Hashable, type[P]], kind: str) -> P:
    """Build a plug-in from `name` or `name{field=value,…}`.

    Args:
        text: the text form.
        known: what `collect` returned.
        kind: the word for it in messages, such as `"policy"`.

    Raises:
        OptionError: the name or a field is unknown, or a value has the wrong type or range.
    """
    advice = f"known: {', '.join(map(str, known))}"
    if not isinstance(text, str):
        raise OptionError(
            f"the {kind} cannot be {brief(text)}",
            why=f"it is {described(text)}, and no text",
            do=advice,
        )
    name, options = read(text, kind, advice)
    if not re.fullmatch(r"[\w-]+", name):
        raise _unreadable(text, kind, advice)
    if name not in known:
        raise OptionError(f"unknown {kind} {name!r}", do=advice)
    return build(known[name], options, f"{kind} {name!r}")


def read(text: str, kind: str, advice: str = "") -> tuple[str, dict[str, str]]:
    """Read `name` or `name{option=value,…}`, the one grammar of all that is named on a line.

    The values stay texts. A comma within brackets or quotes belongs to a value.

    Args:
        text: the text form.
        kind: the word for it in messages, such as `"policy"`.
        advice: what to write instead, for a text that is not of the form.

    Raises:
        OptionError: the text is not of this form, or an option is given twice.

    >>> read("model.py:build{width=64,sizes=[1,2]}", "model")
    ('model.py:build', {'width': '64', 'sizes': '[1,2]'})
    """
    match = re.fullmatch(r"\s*([^{}]+?)\s*(?:\{(.*)\})?\s*", text)
    if match is None:
        raise _unreadable(text, kind, advice)
    name, body = match.group(1), match.group(2) or ""
    items = [_item(part, text, kind) for part in split(body)]
    options = dict(items)
    if len(options) < len(items):
        raise OptionError(f"an option of the {kind} {text!r} is given twice", do="give it once")
    return name, options


def split(text: str) -> list[str]:
    """Split a list at its commas, but for those within brackets, braces and quotes.

    >>> split("fold, mine{a=1,b=2}")
    ['fold', 'mine{a=1,b=2}']
    """
    parts, depth, quote = [""], 0, ""
    for char in text:
        if char == "," and depth == 0 and not quote:
            parts.append("")
            continue
        parts[-1] += char
        if quote or char in "'\"":
            quote = "" if char == quote else quote or char
        else:
            depth += (char in "([{") - (char in ")]}")
    return [part.strip() for part in parts if part.strip()]


def build(cls: type[P], options: Mapping[str, str], where: str) -> P:
    """Build the dataclass `cls` from texts, converted to the types of its fields."""
    types = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in options.items():
        if key not in fields:
            raise OptionError(
                f"the {where} has no option {key!r}",
                do=f"known options: {', '.join(sorted(fields)) or 'none'}",
            )
        values[key] = _convert(value, types[key], f"option {key!r} of the {where}")
    return cls(**values)


def _unreadable(text: str, kind: str, advice: str) -> OptionError:
    return OptionError(
        f"cannot read the {kind} {text!r}",
        why="it is not of the form name or name{option=value,…}",
        do=advice,
    )


def _item(part: str, text: str, kind: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise OptionError(
            f"cannot read {part.strip()!r} in the {kind} {text!r}", do="write option=value"
        )
    return key.strip(), value.strip()


def _convert(value: str, kind: Any, what: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return value
        raise OptionError(f"{what} cannot be {value!r}", do=f"give one of {', '.join(choices)}")
    if kind is bool:
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise OptionError(f"{what} cannot be {value!r}", do="give true or false")
    try:
        return kind(value)
    except ValueError as error:
        number = {int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
        raise OptionError(f"{what} cannot be {value!r}", do=f"give {number}") from error
