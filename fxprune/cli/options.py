"""Options of a command that are fields of a dataclass: declared, checked and explained there."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer
from rich.markup import escape

Given = Mapping[str, Any]
"""The fields that the user gave an option for, by name."""

NONE_GIVEN: Given = MappingProxyType({})


def options_of(defaults: Any, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `given` of a command by one option for each named field.

    An option's type is its field's and its help what the class's docstring says of the field. The
    command finds in `given` only what the user gave, so that it can tell that from a default.

    Args:
        defaults: the dataclass's instance whose values the help shows as defaults.
        names: the fields, in the order of the help.
    """
    texts = described(type(defaults))
    fields = {field.name: field for field in dataclasses.fields(defaults)}
    options = [_option(fields[name], getattr(defaults, name), texts[name]) for name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        parameters: list[inspect.Parameter] = []
        for name, parameter in signature.parameters.items():
            parameters += options if name == "given" else [parameter]

        @functools.wraps(command)
        def called(**arguments: Any) -> None:
            values = {name: arguments.pop(name) for name in names}
            given = {name: value for name, value in values.items() if value is not None}
            command(**arguments, given=given)

        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return called

    return decorate


def described(cls: type) -> dict[str, str]:
    """Read what the docstring of a class says of each of its attributes, on one line each."""
    section = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")[2]
    _, *parts = re.split(r"^    (\w+): ", section, flags=re.MULTILINE)
    return {
        name: " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def _option(field: "dataclasses.Field[Any]", default: Any, text: str) -> inspect.Parameter:
    option = typer.Option(
        help=escape(text[0].upper() + text[1:].replace("`", "")),
        show_default=False if default in (None, "") else _shown(default),
    )
    kind: Any = field.type
    return inspect.Parameter(
        field.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:g}" if isinstance(default, float) else str(default)
