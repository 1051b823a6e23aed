"""Trained weights for a network that has just been built: what a run starts from.

Files of safetensors, and of `torch.save` as far as `torch.load(weights_only=True)` reads them:
tensors and plain containers, never code.
"""

import pickle  # noqa: TID251 - for its error only
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fxprune.errors import RunError
from fxprune.files import CHECK
from fxprune.runs.contents import is_negative, is_wild
from fxprune.runs.gated_file import GATED

ENDINGS = (".safetensors", ".pt", ".pth")
INSIDE = ("state_dict", "model_state_dict", "model")
"""The keys under which training scripts save a state dict beside other things."""

WRAPPED = "module."
"""What DataParallel and DistributedDataParallel put before each name."""

SHOWN = 3  # names of each kind in a message
FLOAT = "save model.state_dict() of the float network"
RIGHT_NETWORK = (
    "build the network that the weights are of; options of its factory go into the SPEC: "
    "model.py:Net{width=64}"
)


def load_weights(model: nn.Module, path: Path) -> None:
    """Give `model` the parameters and buffers that a file holds for it.

    Args:
        model: a network; after a refusal it is not to be used.
        path: `*.safetensors`, or `*.pt` and `*.pth` with a state dict, by itself or under one of
            the names in `INSIDE`. Names may all begin with "module.".

    Raises:
        RunError: the file is missing, damaged, or of another kind, or its tensors are not those
            of the model.
    """
    weights = _read(path)
    if any(name.startswith(GATED) for name in weights):
        raise RunError(
            f"{path} is the checkpoint of a run",
            why="it holds a gated network and its training, not the weights of the whole network",
            do="give the weights that the run began with; or begin a run that goes on with its "
            "policy and budget: fxprune train NEW --from RUN",
        )
    _refuse_odd_tensors(path, weights)
    own: Mapping[str, Any] = model.state_dict()
    odd = [
        f"{name} is {_kind(value)}, the network's is {_kind(own[name])}"
        for name, value in weights.items()
        if isinstance(own.get(name), Tensor)
        and _family(own[name]) != _family(value)
        and not (own[name].dim() == 0 and value.dim() == 0)  # counters
    ]
    if odd:
        raise _unfit(path, {"of another kind": odd}, FLOAT)
    reshaped = [
        f"{name} is {_shape(value)}, the network's is {_shape(own[name])}"
        for name, value in weights.items()
        if isinstance(own.get(name), Tensor) and own[name].shape != value.shape
    ]
    if reshaped:
        raise _unfit(path, {"of another shape": reshaped})
    _refuse_odd_values(path, weights, own)
    try:
        fit = model.load_state_dict(weights, strict=False)
    except Exception as error:  # a network's own hooks may raise anything
        raise RunError(
            f"the weights in {path} do not fit the network",
            why=(str(error).splitlines() or [type(error).__name__])[0],
            do="build the network that the weights are of",
        ) from error
    if fit.missing_keys or fit.unexpected_keys:
        raise _unfit(path, {"missing": fit.missing_keys, "unexpected": fit.unexpected_keys})


def _read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU; see `load_weights`.

    Raises:
        RunError: the file is missing, damaged, or of another kind.
    """
    if path.suffix not in ENDINGS:
        raise RunError(
            f"cannot tell what kind of weights {path} holds",
            do=f"give a file that ends in {', '.join(ENDINGS)}",
        )
    if not path.exists():
        raise RunError(f"there is no file {path}", do="give the path of the weights")
    if not path.is_file():
        raise RunError(f"{path} is not a file", do="give the path of the weights")
    if _is_text(path):
        raise RunError(
            f"there are no weights in {path}",
            why="it is a text file; perhaps a pointer of Git LFS, or an error page of a download",
            do="download the weights again, with git lfs pull if they are in Git LFS",
        )
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except pickle.UnpicklingError as error:
        raise RunError(
            f"cannot read {path}",
            why="it is damaged, or holds more than tensors and plain containers, and code is "
            "never run from it",
            do="save model.state_dict() and nothing else, best as safetensors",
        ) from error
    except Exception as error:  # of a damaged pickle torch raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(
            f"cannot read {path}",
            why=f"it is damaged: {reason}",
            do="save or copy the weights again",
        ) from error
    return _named(found, path)


def _is_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise RunError(f"cannot read {path}", why=str(error), do=CHECK) from error
    return bool(head) and all(byte >= 32 or byte in b"\t\r\n" for byte in head)


def _named(found: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict in what a file held, without the names of wrappers."""
    for key in INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise RunError(
            f"there are no weights in {path}",
            why="it holds no mapping from names to tensors, nor one under "
            + ", ".join(map(repr, INSIDE)),
            do="save model.state_dict()",
        )
    if found and all(str(name).startswith(WRAPPED) for name in found):
        return {str(name).removeprefix(WRAPPED): value for name, value in found.items()}
    return {str(name): value for name, value in found.items()}


def _refuse_odd_tensors(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse tensors that hold no plain numbers."""
    for name, tensor in weights.items():
        if tensor.is_meta:
            raise RunError(f"{name} in {path} is a meta tensor", why="it has no values", do=FLOAT)
        if tensor.is_quantized:
            raise RunError(f"{name} in {path} is quantised", why=f"it is {tensor.dtype}", do=FLOAT)
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise RunError(
                f"{name} in {path} is sparse",
                why=f"its layout is {layout}",
                do="save tensor.to_dense() in its place",
            )


def _refuse_odd_values(path: Path, weights: Mapping[str, Tensor], own: Mapping[str, Any]) -> None:
    """Refuse NaN, infinity, and variances and counts below 0.

    A tensor need not be finite where the network's own is not, such as a mask of -inf. Names that
    the network does not have are checked too, since it may rename them as it loads; but not where
    such a tensor is a view of a few numbers, which may claim any size.
    """
    for name, tensor in weights.items():
        if name not in own and not tensor.is_contiguous():
            continue
        if is_wild(tensor) and not is_wild(own.get(name)):
            bad = "NaN" if bool(tensor.isnan().any()) else "infinity"
            raise RunError(
                f"{name} in {path} holds {bad}",
                why="the training that wrote it diverged, or it overflowed in half precision",
                do="take the weights of an earlier checkpoint",
            )
        if is_negative(name, tensor):
            raise RunError(
                f"{name} in {path} holds numbers below 0",
                why="a variance is a mean of squares, and a count begins at 0",
                do="save it again, or take the weights of another checkpoint",
            )


def _family(tensor: Tensor) -> str:
    """Name the kind of numbers that a dtype belongs to, within which one may stand for another."""
    if tensor.is_complex():
        return "complex"
    if tensor.is_floating_point():
        return "float"
    return "bool" if tensor.dtype == torch.bool else "integer"


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _unfit(path: Path, kinds: Mapping[str, list[str]], do: str = RIGHT_NETWORK) -> RunError:
    lines = []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{more}")
    return RunError(
        f"the weights in {path} do not fit the network",
        why="\n".join(lines),
        do=do,
    )
