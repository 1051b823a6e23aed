"""The user's own code: imported from a file or a module, and called to make a network.

What it prints goes to stderr, and what it raises becomes a SpecError that names the user's line.
"""

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from fxprune.errors import SpecError, described
from fxprune.runs.sources import TextLoader, prefer_text
from fxprune.user_lines import own_line, user_line

T = TypeVar("T")


FORMS = (
    "model.py, model.py:factory, pkg.mod:factory, torchvision:NAME or timm:NAME,\n"
    "with options for the factory in braces: torchvision:resnet18{num_classes=10}"
)


def module_of_file(path: Path) -> ModuleType:
    """Import a file.

    Raises:
        SpecError: there is none, or it raises.
    """
    if not path.is_file():
        near = (
            sorted(item.name for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
        )
        raise SpecError(
            f"there is no file {path}",
            do=nearest(path.name, near) or f"write {FORMS}",
        )
    return run_code(lambda: _import_file(path), f"{path.name} cannot be imported")


def _import_file(path: Path) -> ModuleType:
    # Not under its own name: a file called torch.py or data.py must not replace another module.
    name = f"_fxprune_source_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path, loader=TextLoader(name, str(path)))
    assert found is not None  # the name ends in .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    with _first_on_path(path.resolve().parent):
        found.loader.exec_module(module)
    return module


def module_of_name(dotted: str, base: Path, spec: str) -> ModuleType:
    """Import a module by its dotted name; `base` is looked into first.

    Raises:
        SpecError: there is none, or it raises.
    """

    def load() -> ModuleType:
        for packages in range(dotted.count(".")):
            prefer_text(base.joinpath(*dotted.split(".")[: packages + 1]))
        with _first_on_path(base):
            return importlib.import_module(dotted)

    if not all(part.isidentifier() for part in dotted.split(".")):
        raise SpecError(f"cannot read the SPEC {spec!r}", do=f"write {FORMS}")
    try:
        return run_code(load, f"the module {dotted} cannot be imported")
    except SpecError as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError) or not f"{dotted}.".startswith(
            f"{cause.name}."
        ):
            raise
        raise SpecError(
            f"there is no module {cause.name}",
            why=f"neither in {base} nor among the installed packages",
            do="write the dotted name that Python would import, or the file: path/to/model.py",
        ) from cause


def pick(
    module: ModuleType, name: str | None, options: dict[str, Any], spec: str, where: str
) -> Callable[[], Any]:
    """Find what makes the network in `module`; if nothing does, the error lists its names."""
    wanted = ("build_model", "model") if name is None else (name,)
    for candidate in wanted:
        value = getattr(module, candidate, None)
        if value is not None:
            return _builder(value, options, spec, f"{candidate} in {where}")
    offers = offered(module)
    raise SpecError(
        f"{where} has no {' and no '.join(wanted)}",
        do=nearest(name or "", offers)
        or (f"write {where}:NAME with one of {', '.join(offers)}" if offers else "")
        or "write def build_model(): return … in it",
    )


def _builder(value: Any, options: dict[str, Any], spec: str, what: str) -> Callable[[], Any]:
    if isinstance(value, nn.Module):
        if options:
            raise SpecError(
                f"{what} is a module: it takes no options",
                do=f"leave {{{', '.join(options)}}} out, or name the class {type(value).__name__}",
            )
        return lambda: value
    refusal = _why_not(value)
    if refusal:
        raise SpecError(
            f"{what} is {refusal}",
            why="it is not called: only what makes a network is",
            do="name a class of a torch.nn.Module, or a function that returns one",
        )
    return functools.partial(called, value, options, spec)


def _why_not(value: Any) -> str:
    """Say what `value` is, if it cannot be what makes a network; else nothing."""
    inner = value
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner) if callable(inner) else inner
    if inspect.isclass(inner):
        return "" if issubclass(inner, nn.Module) else f"a class of {inner.__name__}, no network"
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        return described(value)
    if inner.__module__.partition(".")[0] in sys.stdlib_module_names:
        return "a function of Python's standard library"
    made = inner.__annotations__.get("return", nn.Module)
    if made is None or (inspect.isclass(made) and not issubclass(made, nn.Module)):
        return f"a function that returns {getattr(made, '__name__', made)}"
    return ""


def offered(module: ModuleType) -> list[str]:
    """List the names that `module` itself defines and that could make a network."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (
            isinstance(value, nn.Module)
            or (inspect.isfunction(value) and value.__module__ == module.__name__)
            or (inspect.isclass(value) and value.__module__ == module.__name__)
        )
    ]


def called(factory: Callable[..., Any], options: dict[str, Any], spec: str) -> Any:
    """Call `factory`; options that do not fit are told apart from errors inside of it."""
    try:
        signature = inspect.signature(factory)
    except ValueError:  # built in: no signature to ask
        return factory(**options)
    try:
        signature.bind(**options)
    except TypeError as error:
        raise SpecError(
            f"the factory of {spec} does not take these options",
            why=f"{error} (given: {_listed(options)}); its signature is {signature}",
            do="give its own options in braces, such as {num_classes=10}"
            if signature.parameters
            else "leave the braces out: it takes no options",
        ) from error
    return factory(**options)


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none"


def inputs_of(module: ModuleType, spec: str) -> tuple[torch.Tensor, ...] | None:
    """Read `example_inputs` of a module; None if it has none.

    Raises:
        SpecError: `example_inputs` is no tensor and no tuple of tensors.
    """
    value = getattr(module, "example_inputs", None)
    if value is not None and not isinstance(value, torch.Tensor) and callable(value):
        value = run_code(value, f"example_inputs of {spec} raises")
    if value is None:
        return None
    tensors = (value,) if isinstance(value, torch.Tensor) else value
    if not isinstance(tensors, tuple | list) or not tensors:
        raise _not_tensors(spec, value)
    if not all(isinstance(item, torch.Tensor) for item in tensors):
        raise _not_tensors(spec, value)
    return tuple(tensors)


def _not_tensors(spec: str, value: Any) -> SpecError:
    return SpecError(
        f"example_inputs of {spec} is {described(value)}",
        do="make it a tensor, a tuple of tensors, or a function that returns one of these",
    )


def run_code(call: Callable[[], T], what: str, do: str = "") -> T:
    """Run code of the user; what it prints goes to stderr, what it raises becomes a SpecError.

    Args:
        call: runs it.
        what: the error's first line.
        do: what to do about an error in code that is not the user's own.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except SpecError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        if own_line(error) or (isinstance(error, SyntaxError) and error.filename):
            do = "correct the line that is named"
        do = do or "call it in Python to see its traceback"
        raise SpecError(what, at=user_line(error), why=reason, do=do) from error


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Put `folder` first on sys.path, as for a script; afterwards last.

    So a file finds its neighbours, also later, and these cannot hide the packages that torch or
    fxprune have yet to import.
    """
    prefer_text(folder)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def nearest(name: str, known: Iterable[str]) -> str:
    """Ask whether a known name of similar spelling was meant; empty if there is none."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""
