"""Comparison of two networks: random inputs for them, and how far their outputs differ."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.draws import Draws, seed_all

SAME = 1e-3
"""Largest difference between two runs of the same operations, as a share of the largest output.

They are the same to the bit, but for kernels that add up in no fixed order.
"""

LARGER = (10.0, 100.0)
"""Inputs are drawn so much larger where all that a network returns is one value: a ReLU at its end
may be dead on the first ones, and zeros of two networks are equal whatever they compute."""

SMALL = 48
"""Images are not cut below this height and width: some networks halve them five times."""


def fresh_inputs(
    example: Sequence[Tensor], size: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Draw random inputs in the likeness of the example's.

    Args:
        example: the batched ones among them are as long as the first along dim 0.
        size: the batch size that is wanted.
        generator: a CPU generator.

    Returns:
        Floating inputs are normal with the example's mean and deviation (0 and 1 if the example
        is constant); others are drawn from the example's own values. Inputs that are not batched
        keep their size.
    """
    drawn = []
    for tensor, batched in zip(example, which_batched(example)):
        shape = (size, *tensor.shape[1:]) if batched else tensor.shape
        if tensor.is_floating_point():
            deviation, mean = torch.std_mean(tensor.double(), correction=0)
            if not (deviation.isfinite() and deviation > 0):
                deviation, mean = torch.ones((), device="cpu"), torch.zeros((), device="cpu")
            noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
            drawn.append((noise * deviation + mean).to(tensor.dtype))
        else:
            index = torch.randint(tensor.numel(), shape, generator=generator, device="cpu")
            drawn.append(tensor.flatten()[index])
    return tuple(drawn)


def batch_of(example: Sequence[Tensor]) -> int:
    """Return the length of the batch: dim 0 of the first input that has one; 1 if none has."""
    return next((len(tensor) for tensor in example if tensor.dim()), 1)


def in_memory(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copy tensors to the CPU; zeros stand for those on the meta device, which have no values."""
    return tuple(
        torch.zeros(x.shape, dtype=x.dtype, device="cpu") if x.is_meta else x.detach().cpu()
        for x in tensors
    )


def without_noise(example: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copy example inputs to the CPU, but for the values that no forward depends on.

    Numbers, such as lengths and labels, are kept: they may decide which shapes a forward makes.
    Zeros that take no memory stand for floating values, and for inputs on the meta device.
    """
    return tuple(
        torch.zeros((), dtype=x.dtype, device="cpu").expand(x.shape)
        if x.is_floating_point() or x.is_meta
        else x.detach().cpu().clone()
        for x in example
    )


def which_batched(example: Sequence[Tensor]) -> list[bool]:
    """Find which inputs have the batch along dim 0."""
    return [tensor.dim() > 0 and len(tensor) == batch_of(example) for tensor in example]


def repeated(example: Sequence[Tensor], size: int) -> tuple[Tensor, ...]:
    """Repeat the first example as often as a batch is long; what is not batched stays."""
    return tuple(
        tensor[:1].expand(size, *tensor.shape[1:]).contiguous() if batched else tensor
        for tensor, batched in zip(example, which_batched(example), strict=True)
    )


def outputs(network: Callable[..., Any], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the tensors that a network returns, in order; it gets copies of the inputs."""
    result = network(*(tensor.clone() for tensor in inputs))
    return [leaf for leaf in leaves(result) if isinstance(leaf, Tensor)]


def parts(value: Any) -> dict[Any, Any] | None:
    """Return the parts of a mapping or of a dataclass's object, by name; None for other values."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def leaves(value: Any) -> list[Any]:
    """List what is in lists, tuples, mappings and dataclasses, nested in any way, in order."""
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in leaves(part)]
    named = parts(value)
    if named is not None:
        return [leaf for part in named.values() for leaf in leaves(part)]
    return [value]


@torch.no_grad()
def difference(
    model: Callable[..., Any],
    other: Callable[..., Any],
    example: tuple[Tensor, ...],
    device: torch.device | None = None,
) -> float | None:
    """Measure how far another network is from a model, on random inputs like the example's.

    Both draw the same random numbers. Large images are cut first; where the two agree on those,
    that says enough: what a trace takes for granted of the sizes, it asserts itself.

    Returns:
        The largest difference of an output as a share of the largest value, infinity where they
        return other things. None where nothing can be said: the model does not run on such
        inputs, or does not do the same twice.
    """
    device = device or torch.device("cpu")
    if not example or device.type == "meta":
        return None

    def run(network: Callable[..., Any], given: tuple[Tensor, ...]) -> list[Tensor]:
        draws = Draws()
        try:
            seed_all(0)
            with torch.autocast(device.type, enabled=False):  # whose roundings hide what differs
                return outputs(network, given)
        finally:
            draws.put_back()

    example = in_memory(example)
    for smaller in _cut(example):
        given = tuple(x.to(device) for x in fresh_inputs(smaller, 1, torch.Generator()))
        with contextlib.suppress(Exception):  # either may be of the example's size alone
            wanted = run(model, given)
            gap = _furthest(wanted, run(other, given))
            if gap <= SAME and _varies(wanted):
                return gap
    for size in (1, batch_of(example)):  # one example is the quickest, where the model takes one
        given = tuple(x.to(device) for x in fresh_inputs(example, size, torch.Generator()))
        with contextlib.suppress(Exception):  # the user's code may want other inputs
            wanted = run(model, given)
            break
    else:
        return None
    found = _furthest(wanted, run(other, given))
    near = given
    for times in LARGER:
        if found > SAME or _varies(wanted):
            break
        larger = tuple(x * times if x.is_floating_point() else x for x in near)
        try:
            wanted = run(model, larger)
        except Exception:  # the user's code may want other inputs
            break
        given, found = larger, _furthest(wanted, run(other, larger))
    return found if found <= SAME or _furthest(wanted, run(model, given)) <= SAME else None


def _varies(outputs: list[Tensor]) -> bool:
    """Tell whether an output has more than one value."""
    return any(x.numel() > 0 and bool((x != x.flatten()[0]).any()) for x in outputs)


def _cut(example: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Cut large images to a quarter of their height and width, a 16th of the work, then to half."""
    for parts in (4, 2):
        large = [x.dim() > 3 and min(x.shape[-2:]) >= parts * SMALL for x in example]
        if any(large):
            yield tuple(
                x[..., : x.shape[-2] // parts, : x.shape[-1] // parts] if cut else x
                for x, cut in zip(example, large)
            )


def _furthest(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Compute the largest difference of outputs, as a share of each one's largest value."""
    if [x.shape for x in wanted] != [x.shape for x in found]:
        return float("inf")
    gaps = [0.0]
    for a, b in zip(wanted, found, strict=True):
        a, b = a.double(), b.double()
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        gaps.append(relative_gap(a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)))
    return max(gaps)


def relative_gap(wanted: Tensor, found: Tensor) -> float:
    """Compute the largest difference of two tensors, as a share of the largest value wanted.

    Args:
        wanted: any shape and dtype, truth values too; of no elements there is no difference.
        found: of the same shape.

    Returns:
        The share, computed in float64; the difference itself where all values wanted are 0, and
        NaN where a value is.
    """
    if not wanted.numel():
        return 0.0
    wanted, found = wanted.double(), found.double()
    return float((wanted - found).abs().max() / (wanted.abs().max() or 1.0))
