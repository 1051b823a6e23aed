"""Plug-ins: op rules, policies and passes are each one file in a folder, found by looking there.

A plug-in is a class that derives from its folder's base class and names itself in `keys`. Options
are the fields of a (frozen) dataclass; their text form is `name{field=value,other=value}`.
A class in code of the user's is known as well, once that code is imported.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Hashable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from fxprune.errors import FxpruneError, OptionError, UnknownNameError, brief, described


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
            add(value, found)
    return MappingProxyType(found)


def known(package: str, base: type[P]) -> Mapping[Hashable, type[P]]:
    """Map each key to its plug-in: of the folder `package`, or imported from elsewhere.

    Args:
        package: as for `collect`.
        base: as for `collect`.

    Raises:
        OptionError: two plug-ins share a key.
    """
    return _joined(package, base, imported(base))


def imported(base: type[P]) -> tuple[type[P], ...]:
    """List the concrete subclasses of `base` that code other than fxprune's has defined.

    They need keys of their own. One that is defined anew, as a notebook does, replaces the former.
    """
    found: dict[tuple[str, str], type[P]] = {}
    classes = base.__subclasses__()
    while classes:
        one = classes.pop(0)
        classes += one.__subclasses__()
        if _is_own(one) and "keys" in vars(one) and not inspect.isabstract(one):
            found[one.__module__, one.__qualname__] = one
    return tuple(found.values())


def _is_own(plugin: type) -> bool:
    """Tell whether a plug-in is the user's own."""
    return plugin.__module__.partition(".")[0] != __package__


@contextlib.contextmanager
def running(plugin: object, what: str, error: type[FxpruneError] = OptionError) -> Iterator[None]:
    """Turn what a plug-in of the user's own raises into a refusal that names its line.

    Args:
        plugin: the object whose method runs within the block.
        what: the method, for the message.
        error: the kind of the refusal.
    """
    try:
        yield
    except FxpruneError:
        raise
    except Exception as raised:
        if not _is_own(type(plugin)):
            raise
        from fxprune.user_lines import own_line  # it imports torch

        line = own_line(raised)
        raise error(
            f"{what} raises {type(raised).__name__}",
            at=line,
            why=str(raised),
            do="correct the line that is named" if line else "give it the base class's arguments",
        ) from raised


def add(plugin: type[P], found: dict[Hashable, type[P]]) -> None:
    """Add a plug-in under each of its keys.

    Raises:
        OptionError: it has no tuple of keys, or one that another plug-in has.
    """
    keys: Any = getattr(plugin, "keys", None)
    if not isinstance(keys, tuple):
        raise OptionError(
            f"the keys of {plugin.__module__}.{plugin.__qualname__} are {described(keys)}",
            do='give it a tuple of them: keys = ("name",)',
        )
    for key in keys:
        if key in found:
            raise OptionError(
                f"two plug-ins are called {key}",
                at=f"{found[key].__module__} and {plugin.__module__}",
                do="give one of them another key",
            )
        found[key] = plugin


def instances(
    package: str, base: type[P], others: tuple[type[P], ...] | None = None
) -> Mapping[Hashable, P]:
    """Map each key to an object of its plug-in, made without options.

    Args:
        package: as for `collect`.
        base: as for `collect`.
        others: plug-ins from elsewhere; by default what `imported` lists.
    """
    return _made(package, base, imported(base) if others is None else others)


@functools.cache
def _made(package: str, base: type[P], others: tuple[type[P], ...]) -> Mapping[Hashable, P]:
    return {key: plugin() for key, plugin in _joined(package, base, others).items()}


@functools.cache
def _joined(package: str, base: type[P], others: tuple[type[P], ...]) -> Mapping[Hashable, type[P]]:
    found = dict(collect(package, base))
    for one in others:
        add(one, found)
    return MappingProxyType(found)


def to_text(plugin: Any) -> str:
    """Write a plug-in with the options that differ from their defaults, to be repeated by it.

    The first of its keys is its name.
    """
    changed = [
        f"{field.name}={getattr(plugin, field.name)}"
        for field in dataclasses.fields(plugin)
        if field.init and getattr(plugin, field.name) != _default(field)
    ]
    name = str(type(plugin).keys[0])
    return name + (f"{{{','.join(changed)}}}" if changed else "")


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


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
            do=f"give an object of it: {text.__name__}()" if isinstance(text, type) else advice,
        )
    name, options = read(text, kind, advice)
    if not re.fullmatch(r"[\w-]+", name):
        raise _unreadable(text, kind, advice)
    if name not in known:
        raise UnknownNameError(f"unknown {kind} {name!r}", do=advice)
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
    """Build the dataclass `cls` from texts, converted to the types of its fields.

    Raises:
        OptionError: an option is unknown, is missing, or has a wrong value.
    """
    types = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in options.items():
        if key not in fields:
            raise OptionError(
                f"the {where} has no option {key!r}",
                do=f"known options: {', '.join(sorted(fields)) or 'none'}",
            )
        values[key] = _convert(value, types[key], f"option {key!r} of the {where}")
    for key, field in fields.items():
        if key not in values and _default(field) is dataclasses.MISSING:
            raise OptionError(f"the {where} needs its option {key!r}", do=f"write {{{key}=…}}")
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
    if kind in (int, float, str):
        try:
            return kind(value)
        except ValueError as error:
            number = {int: "a whole number", float: "a number"}[kind]
            raise OptionError(f"{what} cannot be {value!r}", do=f"give {number}") from error
    import pydantic  # the command line needs it for nothing else

    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        literal = value
    try:
        return pydantic.TypeAdapter(kind).validate_python(literal)
    except (ValueError, pydantic.errors.PydanticUserError) as error:
        shown = getattr(kind, "__name__", "") if not typing.get_args(kind) else str(kind)
        raise OptionError(
            f"{what} cannot be {value!r}", do=f"give a value of its type, {shown or kind}"
        ) from error
