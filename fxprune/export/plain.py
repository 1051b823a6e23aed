"""Plain code and weights: a compact network that loads, and trains on, without fxprune.

`NAME.py` defines the network as a class of torch's own layers, and `load()`; `NAME.safetensors`
has its weights. The code is what torch.fx prints of the graph.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn

from fxprune.equivalence import fresh_inputs, outputs, relative_gap
from fxprune.errors import ExportError, ParityError
from fxprune.export.marks import marks
from fxprune.export.parity import largest_gap
from fxprune.files import write_bytes
from fxprune.tracing.module import evaluating
from fxprune.tracing.signature import signature_of

HEAD = '''"""A compact network, written by fxprune; it needs torch and safetensors only."""

from pathlib import Path

import torch
{imports}
from safetensors.torch import load_file
from torch import device, inf, nan, nn


class Compact(nn.Module):
    """The network; a call takes what the original one takes."""

    def __init__(self):
        super().__init__()
{layers}

{forward}


def load(weights=Path(__file__).with_suffix(".safetensors")):
    """The network with its weights, in evaluation mode; .train() trains it on."""
    network = Compact()
    network.load_state_dict(load_file(weights))
    return network.eval()
'''

KNOWN = ("torch", "operator", "builtins", "math", "_operator", "typing")


@dataclass(frozen=True)
class PlainReport:
    """What was written.

    Attributes:
        path: of the code; the weights stand beside it.
        bytes: of code and weights.
        max_rel_error: largest difference of what the code computes, from the network.
    """

    path: Path
    bytes: int
    max_rel_error: float


def export_plain(
    compact: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    reference: nn.Module | None = None,
) -> PlainReport:
    """Write a compact network as code and weights.

    Args:
        compact: what `shrink` returned.
        example: inputs for the check.
        path: of the code, ending in .py; the weights get the same name with .safetensors.
        reference: what `compact` has to agree with, if it was changed since.

    Raises:
        ExportError: the network has layers or functions that are not torch's own, computes
            another thing in training than in evaluation, or takes or returns more than tensors.
        ParityError: the code does not compute what the network computes, or that is not what the
            reference does.
        RunError: a file cannot be written.
    """
    if not isinstance(compact, fx.GraphModule):
        raise ExportError(
            "the network cannot be written as plain code",
            why="its forward does other things in training than in evaluation",
            do="write --pt2, or decide in forward by layers such as nn.Dropout alone",
        )
    if signature_of(compact) is not None:
        raise ExportError(
            "the network cannot be written as plain code",
            why="its forward has options, or takes or returns lists or dicts",
            do="write --pt2, which holds any network",
        )
    code = _code(compact)
    tensors = {  # each in memory of its own
        name: tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in compact.state_dict().items()
    }
    with evaluating(compact):
        if reference is not None:
            _compare(compact, reference, example)
        gap = _check(compact, code, tensors, example)
    code += "".join(f"# {key}: {value}\n" for key, value in marks(gap).items())
    weights = safetensors.torch.save(tensors, metadata=marks(gap))
    write_bytes(path.with_suffix(".safetensors"), weights)
    write_bytes(path, code.encode())
    return PlainReport(path, len(code) + len(weights), gap)


def _code(compact: fx.GraphModule) -> str:
    printed = compact.graph.python_code("self")
    imports = []
    for name, value in sorted(printed.globals.items()):
        if name in ("torch", "device", "inf", "nan", "NoneType"):
            continue
        home = str(getattr(value, "__module__", getattr(value, "__name__", "")) or "torch")
        if home.partition(".")[0] not in KNOWN:
            raise _foreign(f"the function {name} of {home}")
        own = getattr(value, "__name__", name)
        is_module = isinstance(value, ModuleType)
        imports.append(
            f"import {home} as {name}" if is_module else f"from {home} import {own} as {name}"
        )
    layers = list(_layers(compact, "self"))
    forward = re.sub(r"^", "    ", printed.src.strip(), flags=re.MULTILINE)
    body = "\n".join(f"        {line}" for line in layers) or "        pass"
    return HEAD.format(imports="\n".join(imports), layers=body, forward=forward)


def _layers(module: nn.Module, path: str) -> Iterator[str]:
    """Write the lines that make the modules and tensors of a network."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            made = f"torch.empty({list(parameter.shape)}, dtype={parameter.dtype})"
            yield f'{path}.register_parameter("{name}", nn.Parameter({made}))'
    for name, buffer in module._buffers.items():
        if buffer is not None:
            made = f"torch.empty({list(buffer.shape)}, dtype={buffer.dtype})"
            kept = name not in module._non_persistent_buffers_set
            if not kept:
                made = f"torch.tensor({buffer.tolist()}, dtype={buffer.dtype})"
            yield f'{path}.register_buffer("{name}", {made}, persistent={kept})'
    for name, child in module.named_children():
        own = f"{path}.{name}" if name.isidentifier() else f'getattr({path}, "{name}")'
        kind = type(child)
        if kind.__module__.startswith("torch.nn.modules.") and not list(child.children()):
            yield f'{path}.add_module("{name}", nn.{_made(child)})'
        else:
            yield f'{path}.add_module("{name}", nn.Module())'
            yield from _layers(child, own)


def _made(layer: nn.Module) -> str:
    """Write the call that makes a layer of torch's, after its repr."""
    text = repr(layer)
    if "\n" in text or not re.fullmatch(r"\w+\(.*\)", text):
        raise _foreign(f"the layer {type(layer).__name__}")
    return text


def _foreign(what: str) -> ExportError:
    return ExportError(
        "the network cannot be written as plain code",
        why=f"{what} is not torch's own",
        do="write --pt2, which holds any network",
    )


@torch.no_grad()
def _compare(compact: nn.Module, reference: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Compare two networks on random inputs.

    Raises:
        ParityError: they differ by more than an exported file may.
    """
    generator = torch.Generator()
    generator.seed()
    trial = fresh_inputs(example, 2, generator)
    with evaluating(reference):
        wanted = outputs(reference, trial)
    do = "leave out the passes that were run on it (--passes)"
    largest_gap(wanted, outputs(compact, trial), "plain code", do)


def _check(
    compact: fx.GraphModule, code: str, tensors: dict[str, Tensor], example: tuple[Tensor, ...]
) -> float:
    """Run the code as it is written; return its largest difference from the network.

    Raises:
        ExportError: it does not run.
        ParityError: it computes something else.
    """
    space: dict[str, Any] = {"__file__": "compact.py", "__name__": "compact"}
    try:
        exec(compile(code, "compact.py", "exec"), space)
        network = space["Compact"]()
        network.load_state_dict(tensors)
        with torch.no_grad():
            found = outputs(network.eval(), example)
    except Exception as error:
        raise ExportError(
            "the network cannot be written as plain code",
            why=f"what was written does not run: {type(error).__name__}: {error}",
            do="write --pt2, which holds any network",
        ) from error
    with torch.no_grad():
        wanted = outputs(compact, example)
    gap = max(map(relative_gap, wanted, found), default=0.0)
    if len(wanted) != len(found) or not gap <= 1e-6:
        raise ParityError(
            "the plain code would not compute what the network computes; it is not written",
            why=f"the largest difference is {gap:.1e} of the largest output",
            do="write --pt2, and please report it with the network",
        )
    return gap
