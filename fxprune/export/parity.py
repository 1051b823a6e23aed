"""Parity: how far ONNX Runtime's outputs are from torch's, and how far they may be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.equivalence import outputs, relative_gap
from fxprune.errors import ExportError, ParityError
from fxprune.tracing.deepcopy import copied
from fxprune.tracing.snapshot import forgetting

Network = Callable[..., Any]
"""A function of tensors, in the order of the file's inputs."""


TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-13,
    torch.float32: 2e-5,
    torch.float16: 5e-3,
}
"""Largest |ONNX - torch| of an output, as a share of its largest |torch|.

Sums of thousands of products in another order differ by about 1e-6 of the scale in float32
(seen: 1e-7 to 1.2e-6 from ResNet-20 to DenseNet-121).
"""


Runner = Callable[[Sequence[np.ndarray[Any, Any]]], list[np.ndarray[Any, Any]]]


@dataclass(frozen=True)
class Gap:
    """How far one output of ONNX Runtime is from torch's."""

    absolute: float
    relative: float
    tolerance: float


def largest_gap(wanted: Sequence[Tensor], found: Sequence[Tensor], what: str, do: str) -> float:
    """Compute the largest difference of an output, as a share of its largest value.

    Args:
        wanted: the outputs of the network.
        found: those of what is to be written.
        what: the kind of the file, for the message.
        do: what to do about a difference.

    Raises:
        ParityError: there are fewer or more outputs, one differs by more than the tolerance of its
            dtype, or is not finite.
    """
    gaps = [relative_gap(a, b) for a, b in zip(wanted, found, strict=False)]
    why = f"it has {len(found)} outputs, the network {len(wanted)}"
    if len(wanted) == len(found):
        limits = [TOLERANCE.get(a.dtype, 0.0) for a in wanted]
        over = [gap for gap, limit in zip(gaps, limits, strict=True) if not gap <= limit]  # or NaN
        if not over:
            return max(gaps, default=0.0)
        why = f"the largest difference is {over[0]:.1e} of the largest output"
    raise ParityError(
        f"the {what} would not compute what the network computes; it is not written",
        why=why,
        do=do,
    )


def excess(gap: Gap) -> float:
    """Compute by how much a gap is over its tolerance."""
    return gap.relative - gap.tolerance


def refusal(path: Path, worst: Gap, plain: Gap, rounding: float, runtime: str) -> ParityError:
    """Make the error for a gap above its tolerance.

    Args:
        path: the file that is not written.
        worst: the gap.
        plain: the gap without ONNX Runtime's graph optimisations, which are at fault if it fits.
        rounding: what `rounding` measured of the network itself.
        runtime: name and version of ONNX Runtime.
    """
    why = (
        f"the largest difference is {worst.relative:.1e} of the largest output, "
        f"more than {worst.tolerance:.0e}"
    )
    do = "this is a fault of fxprune or of the exporter; please report it with the network"
    if rounding >= worst.relative / 2:
        why += f"; rounding alone makes {rounding:.1e} of it in the network itself"
        do = (
            "nothing can be proven where rounding is amplified so much: look for differences of "
            "numbers that are nearly the same, and for norms over a few values"
        )
    elif excess(plain) <= 0:
        why += f"; {plain.relative:.1e} without ONNX Runtime's graph optimisations, which change it"
        do = (
            f"{runtime} is at fault: write differently what it takes "
            "for something else, such as a padding with zeros before a max pooling"
        )
    return ParityError(
        f"the ONNX file would not compute what the network computes; {path} is not written",
        why=why,
        do=do,
    )


@torch.no_grad()
def rounding(network: Network, trials: Sequence[tuple[Tensor, ...]]) -> float:
    """Measure how far a network's outputs are from float64's, as `Gap.relative`; 0 if unknown."""
    if not isinstance(network, nn.Module):
        return 0.0
    exact = copied(network, {}).double()
    found = [0.0]
    for trial in trials:
        precise = tuple(x.double() if x.is_floating_point() else x for x in trial)
        try:
            pairs = zip(called(network, trial), called(exact, precise), strict=True)
            found += [_gap("", wanted.double(), given.double()).relative for wanted, given in pairs]
        except (RuntimeError, ValueError, AssertionError, ParityError):  # it insists on its dtype
            return 0.0
    return max(found)


@torch.no_grad()
def gaps(expected: Network, run: Runner, trial: tuple[Tensor, ...]) -> list[Gap]:
    """Measure one gap for each output.

    Raises:
        ExportError: the network itself does not run on these inputs.
        ParityError: the outputs do not correspond, or are not finite.
    """
    try:
        wanted = called(expected, trial)
    except Exception as error:
        raise ExportError(
            f"the network does not run on inputs of shape {[tuple(x.shape) for x in trial]}",
            why=f"{type(error).__name__}: {error}",
            do="where forward works with some batch sizes only, give one of them (--batch, or "
            "OnnxOptions(batch=…))",
        ) from error
    found = run([tensor.numpy() for tensor in trial])
    if not wanted or len(wanted) != len(found):
        raise ParityError(
            f"the ONNX file has {len(found)} outputs, the network {len(wanted)}",
            why="there is none, one is not a tensor, or two are the same",
            do="let forward return one or more different tensors",
        )
    return [
        _gap(f"output {i}", a, torch.from_numpy(b)) for i, (a, b) in enumerate(zip(wanted, found))
    ]


def called(network: Network, trial: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the outputs of a network as those of its first call."""
    return outputs(forgetting(network) if isinstance(network, nn.Module) else network, trial)


def _gap(name: str, wanted: Tensor, found: Tensor) -> Gap:
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        raise ParityError(
            f"{name} of the ONNX file is {found.dtype} {tuple(found.shape)}, "
            f"of the network {wanted.dtype} {tuple(wanted.shape)}",
            do="write --pt2, and please report it with the network",
        )
    if wanted.isfinite().all() and not found.isfinite().all():
        raise ParityError(
            f"{name} of the ONNX file is not finite",
            why="the network's own is: the exporter or ONNX Runtime computes something else",
            do="write --pt2, and please report it with the network",
        )
    if not wanted.isfinite().all():
        raise ParityError(
            f"{name} of the network is not finite",
            why="infinity and NaN cannot be compared; the training may have diverged",
            do="train again with a smaller learning rate",
        )
    tolerance = TOLERANCE.get(wanted.dtype, 0.0)
    absolute = float((wanted.double() - found.double()).abs().max()) if wanted.numel() else 0.0
    return Gap(absolute, relative_gap(wanted, found), tolerance)
