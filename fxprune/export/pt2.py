"""Export to .pt2, torch's own format, which loads without fxprune; proven before it is written."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.equivalence import (
    fresh_inputs,
    in_memory,
    outputs,
    repeated,
    which_batched,
)
from fxprune.errors import ExportError
from fxprune.export.attempt import as_parameters, exporting, unheard
from fxprune.export.marks import marks
from fxprune.export.onnx import BATCHES
from fxprune.export.parity import called, largest_gap
from fxprune.files import as_path, write_bytes
from fxprune.tracing.deepcopy import copied
from fxprune.tracing.module import exportable, require_module
from fxprune.tracing.signature import flat_inputs, signature_of
from fxprune.tracing.snapshot import forgetting


@dataclass(frozen=True)
class Pt2Report:
    """What an export wrote and how far it is from the network it came from.

    Attributes:
        path: the file.
        bytes: its size.
        max_rel_error: largest difference of an output, as a share of its largest value.
        batches: the batch sizes that were compared.
    """

    path: Path
    bytes: int
    max_rel_error: float
    batches: tuple[int, ...]


@exporting()
def export_pt2(
    model: nn.Module,
    example_inputs: Sequence[Any] | Mapping[str, Any],
    path: str | Path,
    *,
    reference: nn.Module | None = None,
) -> Pt2Report:
    """Write `model`, in eval mode, as a .pt2 file with a dynamic batch.

    `torch.export.load(path).module()` is the network again.

    Args:
        model: a module that torch.export takes, usually what `shrink` returned; not changed.
        example_inputs: one tensor per argument of `forward`, or what `instrument` was given.
            Those whose first dimension is as long as the first one's are taken to be batched
            along it.
        path: where to; the folder has to exist.
        reference: what the file has to agree with; `model` itself if it is not given.

    Raises:
        ExportError: torch cannot export the network with a dynamic batch.
        OptionError: the path is no path.
        ParityError: an output differs by more than `fxprune.export.parity.TOLERANCE`.
        RunError: the file cannot be written.
        TraceError: the model is no nn.Module, or does not take these inputs.
    """
    path = as_path(path)
    require_module(model)
    signature = signature_of(model)
    network = exportable(copied(model, {}).cpu().eval())
    expected: Callable[..., Any] = network
    if reference is not None:
        require_module(reference)
        own = copied(reference, {}).cpu().eval()
        expected = own if signature is None else forgetting(own, signature.caller(own))
    example = in_memory(flat_inputs(model, example_inputs))
    program, content = _exported(network, example)
    with torch.device("cpu"):  # a default device of the user's is not that of the file
        loaded = torch.export.load(io.BytesIO(content)).module()
    generator = torch.Generator()
    generator.seed()
    trials = [fresh_inputs(example, size, generator) for size in BATCHES]
    do = "please report it with the network"
    with torch.no_grad():
        gap = max(
            largest_gap(called(expected, trial), outputs(loaded, trial), ".pt2 file", do)
            for trial in trials
        )
    content = _saved(program, marks(gap))
    write_bytes(path, content)
    return Pt2Report(path, len(content), gap, BATCHES)


def _exported(
    network: nn.Module, example: tuple[Tensor, ...]
) -> tuple[torch.export.ExportedProgram, bytes]:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if batched else None for batched in which_batched(example))
    try:
        with unheard(), torch.no_grad():
            pair = repeated(example, 2)  # a batch of one would be taken for a constant
            shapes = as_parameters(network, shapes)
            program = torch.export.export(network, pair, dynamic_shapes=shapes)
            return program, _saved(program, {})
    except (RuntimeError, ValueError, TypeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ExportError(
            "torch.export cannot export the network",
            why=lines[0],
            do="see torch.export.export(…) on it; where forward computes with the batch size as a "
            "number, write -1 or x.shape[0]",
        ) from error


def _saved(program: torch.export.ExportedProgram, notes: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=notes)
    return buffer.getvalue()
