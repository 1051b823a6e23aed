"""Leaves that ask for what is in a tensor, which meta tensors cannot tell: they run for real."""

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
        real: what to take for its own tensors, by their ids.
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
    device = next(iter(own.values()), torch.empty(0)).device

    def drawn(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point():
            return torch.randn(value.shape, dtype=value.dtype, device=device)
        return torch.zeros(value.shape, dtype=value.dtype, device=device)

    given = pytree.tree_map(drawn, (tuple(args), dict(kwargs)))
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter:
        result = torch.func.functional_call(module, own, *given)
        if again():
            with contextlib.suppress(Exception):  # it may be of no use to a second call
                torch.func.functional_call(module, own, *given)
    on_meta = pytree.tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, result)
    return on_meta, counter.get_total_flops() // 2
