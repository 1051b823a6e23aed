"""Where a network comes from: the text SPEC becomes a module and example inputs.

A SPEC is one of::

    model.py               a file with build_model() or model, and optionally example_inputs
    model.py:factory       a file and a name in it: a function, a class or a module
    pkg.mod:factory        an importable module and a name in it
    torchvision:resnet18   a network of torchvision, untrained
    timm:resnet10t         a network of timm, untrained

and may end in options for the factory: `torchvision:resnet18{num_classes=10}`.
"""

import ast
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.cli.libraries import BATCH, FROM_LIBRARY, Factory, made_up
from fxprune.cli.user_code import (
    FORMS,
    called,
    inputs_of,
    module_of_file,
    module_of_name,
    nearest,
    offered,
    pick,
    run_code,
)
from fxprune.errors import OptionError, SpecError, described
from fxprune.registry import read
from fxprune.runs.run import PLAN, Run
from fxprune.runs.trust import REGISTRIES


@dataclass(frozen=True)
class Source:
    """A network, and inputs that fit it.

    Attributes:
        model: the network, as its factory left it.
        example_inputs: one tensor per argument of `forward`, dim 0 the batch.
        name: a short name that is fit for a file name.
        spec: the SPEC it came from.
    """

    model: nn.Module
    example_inputs: tuple[torch.Tensor, ...]
    name: str
    spec: str


def resolve(spec: str, input: str | None = None, *, base: Path | None = None) -> Source:  # noqa: A002
    """Build the network that `spec` names.

    Args:
        spec: see the head of this module.
        input: shape of the example input without its batch, such as `"3x32x32"`; several inputs
            with commas. It goes before the inputs that the source itself offers.
        base: folder that a relative file name starts from; by default the current one.

    Raises:
        SpecError: `spec` names nothing, its factory raises or returns no module, or no shape of
            an input is known.
    """
    shapes = None if input is None else parse_shapes(input)
    target, options = _split_options(spec)
    factory = _find(target, options, base or Path.cwd(), spec)
    given = f"check the options in braces: {', '.join(options)}" if options else ""
    model = run_code(factory.build, f"the factory of {spec} raises", given)
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"the factory of {spec} made {described(model)}",
            why="a torch.nn.Module is needed",
            do="return the module itself",
        )
    if shapes:
        _check_count(model, len(shapes))
    example_inputs = made_up(shapes) if shapes else factory.inputs()
    if example_inputs is None:
        raise SpecError(
            f"no shape is known for the input of {spec}",
            why="the source has no example_inputs",
            do="give --input, such as --input 3x32x32 (without the batch),\n"
            f"or put example_inputs = torch.randn({BATCH}, 3, 32, 32) beside the factory",
        )
    return Source(model, example_inputs, factory.name, spec)


def network_of(run: Run) -> nn.Module:
    """Build the network that a run was made of.

    Raises:
        SpecError: as `resolve` raises it; where its source is gone, with what the run needs.
    """
    try:
        return resolve(run.spec, run.input, base=run.base).model
    except SpecError as error:
        if error.why:
            raise
        raise SpecError(
            error.what,
            at=error.at,
            why=f"{run.path} was made of {run.spec}",
            do=f"bring it back to {run.base}, as it was",
        ) from error


def build(spec: str) -> Any:
    """Build what a file or a module names, which need not be a network.

    Args:
        spec: `pkg.mod:factory` or `file.py:factory`, with options in braces.

    Raises:
        SpecError: it names nothing, or the factory raises.
    """
    target, options = _split_options(spec)
    head, colon, _ = target.rpartition(":")
    if not (colon and head) or head in REGISTRIES:
        raise SpecError(f"cannot read {spec!r}", do="write pkg.mod:factory or file.py:factory")
    return run_code(_find(target, options, Path.cwd(), spec).build, f"the factory of {spec} raises")


def load_object(text: str, kind: str, *, base: Path | None = None, call: bool = False) -> Any:
    """Import what `file.py:name` or `pkg.mod:name` names: a data factory, a loss, a metric.

    A class is made, with the options in braces; a function is returned as it is, or called with
    the options if `call` says so. Anything else is returned.

    Args:
        text: the name, perhaps with options: `losses.py:Dice{smooth=1.0}`.
        kind: what it is for, such as "loss", for messages.
        base: folder that a relative file name starts from; by default the current one.
        call: functions make what is meant, and take the options.

    Raises:
        SpecError: it names nothing, cannot be imported, or raises.
    """
    target, options = _split_options(text)
    head, _, name = target.rpartition(":")
    if not (head and name.isidentifier()):
        raise SpecError(
            f"cannot read the {kind} {text!r}", do=f"write file.py:{kind} or pkg.mod:{kind}"
        )
    folder = base or Path.cwd()
    if head.endswith(".py"):
        module, where = module_of_file(folder / head), Path(head).name
    else:
        module, where = module_of_name(head, folder, text), head
    value = getattr(module, name, None)
    if value is None:
        raise SpecError(
            f"{where} has no {name}", do=nearest(name, offered(module)) or f"define {name} in it"
        )
    if inspect.isclass(value) or (call and callable(value)):
        return run_code(lambda: called(value, options, text), f"the {kind} {text} raises")
    if options:
        raise SpecError(
            f"the {kind} {text} takes no options",
            why=f"{name} is {described(value)}",
            do="name a class, whose options stand in braces, or leave them out",
        )
    return value


def maker(base: Path) -> Callable[[str, str], Any]:
    """Return the function that makes what a run's names of code stand for, by `load_object`."""
    return lambda text, kind: load_object(text, kind, base=base, call=kind in ("data", "transform"))


def parse_shapes(text: str) -> tuple[tuple[int, ...], ...]:
    """Read shapes without their batch: `"3x32x32"`, or `"3x32x32,10"` for two inputs.

    Raises:
        SpecError: the text is none, or a size is not positive.

    >>> parse_shapes("3x32x32")
    ((3, 32, 32),)
    >>> parse_shapes("3x32x32, 10")
    ((3, 32, 32), (10,))
    """
    shapes = []
    for part in text.split(","):
        sizes = re.split(r"[x×]", part.strip())
        if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
            raise SpecError(
                f"cannot read the input shape {text!r}",
                do="write positive sizes without the batch, such as 3x32x32",
            )
        shapes.append(tuple(map(int, sizes)))
    return tuple(shapes)


def _check_count(model: nn.Module, count: int) -> None:
    """Refuse shapes of more or fewer inputs than `forward` takes, as where commas stand for x."""
    try:
        inspect.signature(model.forward).bind(*[None] * count)
    except TypeError as error:
        raise SpecError(
            f"--input gives the shapes of {count} input{'s' * (count > 1)}",
            why=f"{type(model).__name__}.forward takes others: {error}",
            do="write x between the sizes of an input, such as 3x32x32, and commas between inputs",
        ) from error


def _split_options(spec: str) -> tuple[str, dict[str, Any]]:
    try:
        target, texts = read(spec, "SPEC")
        return target, {_name(key): _literal(text) for key, text in texts.items()}
    except (OptionError, SyntaxError, ValueError) as error:
        if "{" not in spec:
            raise SpecError(f"cannot read the SPEC {spec!r}", do=f"write {FORMS}") from error
        raise SpecError(
            f"cannot read the options in the SPEC {spec!r}",
            do="write {name=value,…} with plain values, such as {num_classes=10}",
        ) from error


def _name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError
    return text


def _literal(text: str) -> Any:
    """Evaluate a value as Python would; a word without quotes is a text."""
    value = ast.parse(text, mode="eval").body
    return value.id if isinstance(value, ast.Name) else ast.literal_eval(value)


def _find(target: str, options: dict[str, Any], base: Path, spec: str) -> Factory:
    library, _, listed = target.partition(":")
    if library in REGISTRIES and listed:  # before files: trust is not asked for these names
        return FROM_LIBRARY[library](listed, options)
    if target.endswith(".py"):
        return _from_file(base / target, None, options, spec)
    head, colon, name = target.rpartition(":")
    if not (colon and head and name):
        raise SpecError(f"cannot read the SPEC {spec!r}", do=_advice(target, base))
    if head.endswith(".py"):
        return _from_file(base / head, name, options, spec)
    return _from_import(head, name, options, base, spec)


def _advice(target: str, base: Path) -> str:
    if (base / target / PLAN).is_file():
        return "it is a run, which train, export and report take; here name what it was made of"
    if (base / target).is_file():
        return "a network is built by Python code: name the file or module with that code"
    if re.fullmatch(r"\w+", target):
        from torchvision import models

        if target in models.list_models():
            return f"write torchvision:{target}"
    return f"write {FORMS}"


def _from_file(path: Path, name: str | None, options: dict[str, Any], spec: str) -> Factory:
    module = module_of_file(path)
    build = pick(module, name, options, spec, path.name)
    stem = path.stem if name is None else f"{path.stem}-{name}"
    return Factory(stem, build, lambda: inputs_of(module, spec))


def _from_import(dotted: str, name: str, options: dict[str, Any], base: Path, spec: str) -> Factory:
    module = module_of_name(dotted, base, spec)
    build = pick(module, name, options, spec, dotted)
    return Factory(f"{dotted.split('.')[-1]}-{name}", build, lambda: inputs_of(module, spec))
