"""What a checkpoint's tensors have to be, for the network that is to take them over.

A checksum tells damage; it does not tell a file that was written wrong, or on purpose. So names,
shapes, dtypes and values are checked before anything is taken over.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from fxprune.errors import RunError
from fxprune.files import damaged
from fxprune.formats import TENSOR_BYTES
from fxprune.gated.module import GatedModule

BUFFERS = ("running_var", "num_batches_tracked")
"""The buffers of batch norms that are never below 0."""

SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "step")
"""What an optimiser keeps that is never below 0."""

ROOM = 64 * 2**20
"""Bytes that a checkpoint may have beside its network's tensors: names, history, policy."""

COPIES = 12
"""How often each element may occur in a checkpoint: banks and moments of an optimiser, in 64 bits
where the network has 16."""


def most_bytes(tensors: Iterable[Tensor]) -> int:
    """Compute the size of the largest checkpoint that a network with these tensors can have."""
    tensors = list(tensors)
    if any(is_lazy(tensor) for tensor in tensors):  # sizes that are not known yet
        return TENSOR_BYTES
    return ROOM + COPIES * sum(8 * tensor.numel() for tensor in tensors)


def check_gated(path: Path, tensors: Mapping[str, Tensor], gated: GatedModule) -> None:
    """Refuse what `gated.restore` must not take over.

    Args:
        path: for the message.
        tensors: what is to be restored.
        gated: the network, as its plan makes it.

    Raises:
        RunError: a tensor is missing or unknown, has another shape or dtype, or wrong values.
    """
    own = gated.training_state()
    for name, tensor in tensors.items():
        like = _like(name, own)
        why = _misfit(name, tensor, like)
        if why:
            raise _wrong(path, name, why)
        check_values(path, {name: tensor}, {} if like is None else {name: like})
    missing = {name for name in own if name.startswith("policy/")} - tensors.keys()
    if missing:
        raise _wrong(path, min(missing), "it is missing")
    for kind in ("trained", "settled"):
        if (f"{kind}/channels" in tensors) != (f"{kind}/widths" in tensors):
            raise _wrong(path, kind, "half of the selection is missing")


def _like(name: str, own: Mapping[str, Tensor]) -> Tensor | None:
    """Return the network's own tensor that one of a checkpoint is like; None if there is none."""
    kind, _, rest = name.partition("/")
    # state/KEY/NAME, of resting channels, is what the optimiser keeps of dense/NAME
    return own.get(f"dense/{rest.partition('/')[2]}" if kind == "state" else name)


def _misfit(name: str, tensor: Tensor, like: Tensor | None) -> str:
    """Say how shape, dtype or value of a tensor are not what is needed; nothing if they are."""
    kind, dtype = name.partition("/")[0], tensor.dtype
    if kind == "state":
        fits = like is not None and (
            tensor.shape == like.shape and dtype.is_floating_point >= like.dtype.is_floating_point
        )
        return "" if fits else "it belongs to no parameter"
    if kind in ("trained", "settled"):
        plain = dtype == torch.int64 and tensor.dim() == 1
        return "" if plain else "a list of whole numbers is needed"
    if name == "settings":
        return "" if dtype == torch.uint8 and tensor.dim() == 1 else "a text is needed"
    if name in ("steps", "peak_rate", "share"):
        needed = torch.int64 if name == "steps" else torch.float64
        plain = dtype == needed and tensor.dim() == 0 and 0 <= float(tensor) < 2**62
        return "" if plain else "a number from 0 up is needed"
    if like is None:
        return ""  # `restore` itself refuses names that it does not know
    if dtype != like.dtype:
        return f"it is {dtype}, and {like.dtype} is needed"
    return "it has another shape" if kind == "policy" and tensor.shape != like.shape else ""


def check_values(path: Path, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Refuse values that no training leaves: not finite, or variances below 0.

    Args:
        path: for the message.
        tensors: by name.
        own: a network's own tensors by name; where these are not finite, others need not be.

    Raises:
        RunError: one of them has such a value.
    """
    for name, tensor in tensors.items():
        if is_wild(tensor) and not is_wild(own.get(name)):
            raise _wrong(path, name, "it holds NaN or infinity")
        if is_negative(name, tensor):
            raise _wrong(path, name, "it holds numbers below 0")


def check_plain(path: Path, state: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Refuse values and dtypes that a plain network must not load; loading itself refuses names.

    Args:
        path: for the message.
        state: what is to be loaded.
        own: the network's state dict.

    Raises:
        RunError: a tensor has another dtype than the network's, or a wrong value.
    """
    for name, tensor in state.items():
        if isinstance(own.get(name), Tensor) and own[name].dtype != tensor.dtype:
            raise RunError(
                f"cannot go on from {path}",
                why=f"it belongs to another model: {name} is {tensor.dtype}",
                do="give another folder, or delete this one's checkpoint",
            )
    check_values(
        path, *({f"model/{name}": tensor for name, tensor in each.items()} for each in (state, own))
    )


def is_negative(name: str, tensor: Tensor) -> bool:
    """Tell whether a tensor holds numbers below 0, and by its name must not."""
    kind, _, rest = name.partition("/")
    if kind == "state":  # state/KEY/NAME of resting channels
        never = rest.partition("/")[0] in SQUARES
    elif kind == "optimizer":  # optimizer/INDEX/KEY
        never = rest.partition("/")[2] in SQUARES
    else:
        never = name.rpartition(".")[2] in BUFFERS
    return never and not tensor.is_complex() and bool((tensor < 0).any())


def is_wild(tensor: Tensor | None) -> bool:
    """Tell whether a tensor holds NaN or infinity."""
    if tensor is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    return not bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.float()).all())


def _wrong(path: Path, name: str, why: str) -> RunError:
    return damaged(path, f"{name!r}: {why}")
