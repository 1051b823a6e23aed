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
import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from fxprune.errors import OptionError, SpecError
from fxprune.registry import read
from fxprune.runs.trust import REGISTRIES
from fxprune.user_lines import user_line

T = TypeVar("T")

BATCH = 2  # rows of made-up example inputs; one row would not do for a batch norm behind a pooling

FORMS = (
    "model.py, model.py:factory, pkg.mod:factory, torchvision:NAME or timm:NAME,\n"
    "with options for the factory in braces: torchvision:resnet18{num_classes=10}"
)


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


@dataclass(frozen=True)
class _Factory:
    """A network that has yet to be built, and what is known of its inputs."""

    name: str
    build: Callable[[], Any]
    inputs: Callable[[], tuple[torch.Tensor, ...] | None]


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
    model = _run(factory.build, f"the factory of {spec} raises")
    if not isinstance(model, nn.Module):
        raise SpecError(
            f"the factory of {spec} made {_a(model)}",
            why="a torch.nn.Module is needed",
            do="return the module itself",
        )
    example_inputs = _made_up(shapes) if shapes else factory.inputs()
    if example_inputs is None:
        raise SpecError(
            f"no shape is known for the input of {spec}",
            why="the source has no example_inputs",
            do="give --input, such as --input 3x32x32 (without the batch),\n"
            f"or put example_inputs = torch.randn({BATCH}, 3, 32, 32) beside the factory",
        )
    return Source(model, example_inputs, factory.name, spec)


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
    return _run(_find(target, options, Path.cwd(), spec).build, f"the factory of {spec} raises")


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
        module, where = _module_of_file(folder / head), Path(head).name
    else:
        module, where = _module_of_name(head, folder, text), head
    value = getattr(module, name, None)
    if value is None:
        raise SpecError(
            f"{where} has no {name}", do=_nearest(name, _offers(module)) or f"define a {kind} in it"
        )
    if inspect.isclass(value) or (call and callable(value)):
        return _run(lambda: _called(value, options, text), f"the {kind} {text} raises")
    if options:
        raise SpecError(
            f"the {kind} {text} takes no options",
            why=f"{name} is {_a(value)}",
            do="name a class, whose options stand in braces, or leave them out",
        )
    return value


def maker(base: Path) -> Callable[[str, str], Any]:
    """Return the function that makes what a run's names of code stand for, by `load_object`."""
    return lambda text, kind: load_object(text, kind, base=base, call=kind == "data")


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


def _find(target: str, options: dict[str, Any], base: Path, spec: str) -> _Factory:
    library, _, listed = target.partition(":")
    if library in REGISTRIES and listed:  # before files: trust is not asked for these names
        return _REGISTERED[library](listed, options)
    if target.endswith(".py"):
        return _from_file(base / target, None, options, spec)
    head, colon, name = target.rpartition(":")
    if not (colon and head and name):
        raise SpecError(f"cannot read the SPEC {spec!r}", do=_advice(target))
    if head.endswith(".py"):
        return _from_file(base / head, name, options, spec)
    return _from_import(head, name, options, base, spec)


def _advice(target: str) -> str:
    if re.fullmatch(r"\w+", target):
        from torchvision import models

        if target in models.list_models():
            return f"write torchvision:{target}"
    return f"write {FORMS}"


def _from_file(path: Path, name: str | None, options: dict[str, Any], spec: str) -> _Factory:
    module = _module_of_file(path)
    build = _pick(module, name, options, spec, path.name)
    stem = path.stem if name is None else f"{path.stem}-{name}"
    return _Factory(stem, build, lambda: _inputs_of(module, spec))


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = (
            sorted(item.name for item in path.parent.glob("*.py")) if path.parent.is_dir() else []
        )
        raise SpecError(
            f"there is no file {path}",
            do=_nearest(path.name, near) or f"write {FORMS}",
        )
    return _run(lambda: _import_file(path), f"{path.name} cannot be imported")


def _import_file(path: Path) -> ModuleType:
    # Not under its own name: a file called torch.py or data.py must not replace another module.
    name = f"_fxprune_source_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None  # the name ends in .py
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    with _first_on_path(path.resolve().parent):
        found.loader.exec_module(module)
    return module


def _from_import(
    dotted: str, name: str, options: dict[str, Any], base: Path, spec: str
) -> _Factory:
    module = _module_of_name(dotted, base, spec)
    build = _pick(module, name, options, spec, dotted)
    return _Factory(f"{dotted.split('.')[-1]}-{name}", build, lambda: _inputs_of(module, spec))


def _module_of_name(dotted: str, base: Path, spec: str) -> ModuleType:
    def load() -> ModuleType:
        with _first_on_path(base):
            return importlib.import_module(dotted)

    if not all(part.isidentifier() for part in dotted.split(".")):
        raise SpecError(f"cannot read the SPEC {spec!r}", do=f"write {FORMS}")
    try:
        return _run(load, f"the module {dotted} cannot be imported")
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


def _pick(
    module: ModuleType, name: str | None, options: dict[str, Any], spec: str, where: str
) -> Callable[[], Any]:
    """Find what makes the network in `module`; refuse, with what there is, if nothing does."""
    wanted = ("build_model", "model") if name is None else (name,)
    for candidate in wanted:
        value = getattr(module, candidate, None)
        if value is not None:
            return _builder(value, options, spec, f"{candidate} in {where}")
    offers = _offers(module)
    raise SpecError(
        f"{where} has no {' and no '.join(wanted)}",
        do=_nearest(name or "", offers)
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
    return functools.partial(_called, value, options, spec)


def _why_not(value: Any) -> str:
    """Say what `value` is, if it cannot be what makes a network; else nothing."""
    inner = value
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner) if callable(inner) else inner
    if inspect.isclass(inner):
        return "" if issubclass(inner, nn.Module) else f"a class of {inner.__name__}, no network"
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        return _a(value)
    if inner.__module__.partition(".")[0] in sys.stdlib_module_names:
        return "a function of Python's standard library"
    made = inner.__annotations__.get("return", nn.Module)
    if made is None or (inspect.isclass(made) and not issubclass(made, nn.Module)):
        return f"a function that returns {getattr(made, '__name__', made)}"
    return ""


def _offers(module: ModuleType) -> list[str]:
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


def _called(factory: Callable[..., Any], options: dict[str, Any], spec: str) -> Any:
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
            do="give its own options in braces, such as {num_classes=10}",
        ) from error
    return factory(**options)


def _listed(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none"


def _inputs_of(module: ModuleType, spec: str) -> tuple[torch.Tensor, ...] | None:
    value = getattr(module, "example_inputs", None)
    if value is not None and not isinstance(value, torch.Tensor) and callable(value):
        value = _run(value, f"example_inputs of {spec} raises")
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
        f"example_inputs of {spec} is {_a(value)}",
        do="make it a tensor, a tuple of tensors, or a function that returns one of these",
    )


def _from_torchvision(name: str, options: dict[str, Any]) -> _Factory:
    from torchvision import models

    if name not in models.list_models():
        raise SpecError(
            f"torchvision has no network {name!r}",
            do=_nearest(name, models.list_models()) or "see torchvision.models.list_models()",
        )

    def build() -> Any:
        builder = models.get_model_builder(name)
        # A detection network would otherwise fetch the weights of its backbone.
        untrained = {"weights": None, "weights_backbone": None}
        known = inspect.signature(builder).parameters
        defaults = {key: value for key, value in untrained.items() if key in known}
        return builder(**{**defaults, **options})

    def inputs() -> tuple[torch.Tensor, ...]:
        kind = models.get_model_builder(name).__module__
        if "optical_flow" in kind:
            return _made_up(((3, 128, 128), (3, 128, 128)))
        preset = models.get_model_weights(name).DEFAULT.transforms()
        size = getattr(preset, "crop_size", [224])
        frames = (16,) if ".video." in kind else ()
        return _made_up(((3, *frames, size[0], size[-1]),))

    return _Factory(name, build, inputs)


def _from_timm(name: str, options: dict[str, Any]) -> _Factory:
    try:
        import timm
    except ImportError as error:
        raise SpecError("timm is not installed", do="pip install timm") from error
    if not timm.is_model(name.split(".")[0]):
        raise SpecError(
            f"timm has no network {name!r}",
            do=_nearest(name, timm.list_models()) or "see timm.list_models()",
        )

    def inputs() -> tuple[torch.Tensor, ...]:
        config = timm.get_pretrained_cfg(name)
        return _made_up(((3, 224, 224) if config is None else tuple(config.input_size),))

    safe = re.sub(r"[^\w.-]", "_", name)
    return _Factory(safe, lambda: timm.create_model(name, pretrained=False, **options), inputs)


_REGISTERED = {"torchvision": _from_torchvision, "timm": _from_timm}


def _run(call: Callable[[], T], what: str) -> T:
    """Run code of the user; what it prints goes to stderr, what it raises becomes a SpecError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return call()
    except SpecError:
        raise
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        at = user_line(error)
        do = "correct the line that is named" if at else "call it in Python to see its traceback"
        raise SpecError(what, at=at, why=reason, do=do) from error


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Put `folder` first on sys.path, as for a script; afterwards last.

    So a file finds its neighbours, also later, and these cannot hide the packages that torch or
    fxprune have yet to import.
    """
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def _made_up(shapes: tuple[tuple[int, ...], ...]) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    try:
        return tuple(torch.randn(BATCH, *shape, generator=draw) for shape in shapes)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise SpecError(
            f"an input of shape {' and '.join('x'.join(map(str, shape)) for shape in shapes)} "
            "does not fit into memory",
            do="give a smaller one",
        ) from error


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _a(value: Any) -> str:
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"
