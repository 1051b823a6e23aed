"""What asks for what is in a tensor, which meta tensors cannot tell: it runs for real.

These are modules that keep their code, and functions that PyTorch has not written for meta tensors.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.tracing.module import stand_in


@torch.no_grad()
def really_run(
    module: nn.Module,
    real: Mapping[int, Tensor],
    args: Any,
    kwargs: Any,
    names: dict[int, str] | None = None,
    again: Callable[[], bool] = lambda: False,
) -> tuple[Any, int]:
    """Run a module whose tensors are meta tensors, on random inputs.

    Args:
        module: the module; it is not changed.
        real: what to take for its own tensors, and for arguments that are known, by their ids.
        args: meta tensors, which others of the same shape stand for, and what else it takes.
        kwargs: likewise.
        names: takes the names of its own tensors, by the ids that they have in this run.
        again: tells after the run whether there is another one, with what it has left behind.

    Returns:
        What it returns, on meta tensors, and its multiply-accumulates.
    """
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    own = {name: stand_in(x, real[id(x)].clone()) for name, x in named.items()}
    if names is not None:
        names.update({id(tensor): name for name, tensor in own.items()})
    device = next(iter(own.values()), torch.empty(0, device="cpu")).device
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        given = pytree.tree_map(lambda x: _drawn(x, real, device), (tuple(args), dict(kwargs)))
        result = torch.func.functional_call(module, own, *given)
        if again():
            with contextlib.suppress(Exception):  # it may be of no use to a second call
                torch.func.functional_call(module, own, *given)
    return pytree.tree_map(_to_meta, result), counter.get_total_flops() // 2


@torch.no_grad()
def really_called(
    function: Callable[..., Any], real: Mapping[int, Tensor], args: Any, kwargs: Any
) -> tuple[Any, int]:
    """Call a function that does not run on meta tensors, on random ones.

    Args:
        function: the function.
        real: the tensors that are known, by the ids of the meta tensors that stand for them.
        args: meta tensors, and what else it takes.
        kwargs: likewise.

    Returns:
        What it returns, on meta tensors, and its multiply-accumulates.
    """
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        cpu = torch.device("cpu")
        given = pytree.tree_map(lambda x: _drawn(x, real, cpu), (tuple(args), dict(kwargs)))
        result = function(*given[0], **given[1])
    return pytree.tree_map(_to_meta, result), counter.get_total_flops() // 2


def _drawn(value: Any, real: Mapping[int, Tensor], device: torch.device) -> Any:
    """Return what a meta tensor stands for if that is known, or a random tensor in its likeness."""
    if not isinstance(value, Tensor) or not value.is_meta:
        return value
    if id(value) in real:
        return real[id(value)].to(device, copy=True)
    if value.is_floating_point():
        return torch.randn(value.shape, dtype=value.dtype, device=device)
    return torch.zeros(value.shape, dtype=value.dtype, device=device)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value
