"""Whether a network will export, tried by torch's own trace before the network is trained."""

import inspect
import linecache
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import _trace
from torch.fx.graph_module import _loader

from fxprune.equivalence import repeated, which_batched
from fxprune.errors import ExportError
from fxprune.export.condconv import BatchedConvs
from fxprune.gated.module import GatedModule
from fxprune.passes import apply
from fxprune.passes.base import Program
from fxprune.tracing.module import exportable

Sizes = tuple[str | int, ...]
"""The sizes of an input; "batch" where any will do."""


@contextmanager
def exporting() -> Iterator[None]:
    """Leave autocast, in which files would be of its precision, and forget sources at the end.

    torch.fx keeps the source of each graph that was compiled, for tracebacks, for as long as the
    process lives: 20 graphs and 50 kB for each export of a small network.
    """
    known = set(_loader.eval_cache)
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        for name in _loader.eval_cache.keys() - known:
            _loader.eval_cache.pop(name, None)
            linecache.cache.pop(name, None)


@exporting()
def try_export(gated: GatedModule) -> tuple[Sizes, ...]:
    """Trace the compact network as an export to ONNX would; training changes nothing of that.

    It takes seconds (0.6 s of a CPU for ResNet-18, 3 s for DenseNet-121). Not tried is whether ONNX
    has each operation, and whether another height and width will do.

    Args:
        gated: the network, trained or not; it is not changed.

    Returns:
        For each input its sizes in the exported file. Where no first size is "batch", the file
        takes batches of one size only, which `OnnxOptions` has to say.

    Raises:
        ExportError: torch cannot export it.

    >>> import fxprune
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> try_export(fxprune.instrument(model, (torch.zeros(2, 3, 8, 8),)))
    (('batch', 3, 8, 8),)
    """
    program = apply("shrink", Program(gated, ()))
    network, example = exportable(program.module.cpu().eval()), repeated(program.inputs, 2)
    known: list[tuple[Sizes, ...]] = []
    for strict in (False, True):  # the second is what torch.onnx tries where the first fails
        try:
            known.append(_sizes(network, example, strict))
        except Exception as error:  # torch's trace raises errors of many kinds
            if strict and not known:
                why = reason(error)
                raise ExportError(
                    "torch cannot export the network to ONNX", why=why, do=advice(why)
                ) from error
        if known and any("batch" in sizes for sizes in known[-1]):
            break
    return known[-1]


def _sizes(network: nn.Module, example: tuple[Tensor, ...], strict: bool) -> tuple[Sizes, ...]:
    """Run torch's trace, and read the sizes of the inputs off the result."""
    shapes = tuple(
        {0: torch.export.Dim.AUTO} if batched else None for batched in which_batched(example)
    )
    with unheard(), torch.no_grad(), BatchedConvs():
        program = torch.export.export(network, example, dynamic_shapes=shapes, strict=strict)
    given = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = [given[name].meta["val"].shape for name in program.graph_signature.user_inputs]
    return tuple(
        tuple(int(text) if (text := str(size)).isdigit() else "batch" for size in sizes)
        for sizes in found  # a symbol may have become a number
    )


def as_parameters(network: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put what is said of each input by forward's parameters, of which `*args` takes several.

    Args:
        network: the network.
        shapes: one for each input.
    """
    kinds = [each.kind for each in inspect.signature(network.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds[: len(shapes)]:
        return shapes
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], shapes[first:])


@contextmanager
def unheard() -> Iterator[None]:
    """Keep away what torch says of an export: of attempts that fail it may try another.

    Those are warnings; logs, such as the traceback of an opset that it cannot write; and the
    graph as far as it came, which torch.export prints.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    vars(_trace)["print"] = lambda *_, **__: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        vars(_trace).pop("print", None)
        logging.disable(before)


def reason(error: BaseException) -> str:
    """Return the innermost cause, in its first line, or two if the first announces the second."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def advice(why: str) -> str:
    """Say what to do where torch cannot export."""
    if "data-dependent" in why.lower():
        return "forward branches on what is in a tensor: compute both and use torch.where"
    return (
        "see torch.onnx.export(…, dynamo=True) on it; where forward computes with the batch size "
        "as a number, write -1 or x.shape[0], or give the one batch size (--batch)"
    )
