"""Data parallel: what torch.distributed needs to know of a network whose widths change.

DistributedDataParallel reduces the gradients of the parameters as they were when it was made: its
reducer has buckets for their sizes, and hooks on the autograd nodes that accumulate them. It knows
nothing of the bank and of the policy. The functions here close both gaps; all ranks have to call
them, like the wrapper's own constructor.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from fxprune.errors import GateError


def broadcast(
    state: Mapping[str, Tensor], group: distributed.ProcessGroup, device: torch.device
) -> dict[str, Tensor]:
    """Return the state of the group's first rank, on all of them; names and shapes may differ.

    Args:
        state: tensors by name.
        group: the ranks that take part.
        device: where the tensors travel; one that the group's backend can use.
    """
    described = [[(name, t.shape, t.dtype) for name, t in state.items()]]
    distributed.broadcast_object_list(described, group=group, group_src=0, device=device)
    first = distributed.get_rank(group) == 0
    shared = {}
    for name, shape, dtype in described[0]:
        empty = torch.empty(shape, dtype=dtype, device=device)
        tensor = state[name].to(device).contiguous() if first else empty
        distributed.broadcast(tensor, group=group, group_src=0)
        shared[name] = tensor
    return shared


def mean(values: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """Return the mean over the ranks of a tensor that has one shape on all of them."""
    total = values.clone()
    distributed.all_reduce(total, group=group)
    return total / distributed.get_world_size(group)


@torch.no_grad()
def share_buffers(buffers: Iterable[Tensor], wrapper: DistributedDataParallel) -> None:
    """Give all ranks the buffers of the first, as the wrapper itself does before a forward."""
    tensors = [buffer.detach() for buffer in buffers]
    if tensors and wrapper.broadcast_buffers:
        inner: Any = wrapper
        inner._default_broadcast_coalesced(tensors)


def rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    """Make the reducer of a wrapper anew, for the sizes that its parameters have now.

    As the wrapper does itself after unpickling. No collective is run; the first backward agrees
    on the order of the buckets, as in the first step.

    Raises:
        GateError: the wrapper keeps copies of parameters or gradients, which cannot follow.
    """
    refusals = {
        "mixed_precision": wrapper.mixed_precision is not None,
        "delay_all_reduce_named_params": bool(wrapper._delay_all_reduce_params),
    }
    for option, used in refusals.items():
        if used:
            raise GateError(
                f"the widths cannot change under DistributedDataParallel({option}=...)",
                why="it keeps tensors of the old widths",
                do="leave the option out (torch.autocast does mixed precision), or take a policy "
                "and budget whose widths stay: reallocate=0, no warm-up",
            )
    inner: Any = wrapper
    inner._remove_autograd_hooks()
    parameters, sparse = inner._build_params_for_reducer()
    names = inner._build_debug_param_to_name_mapping(parameters)
    inner._ddp_init_helper(parameters, sparse, names, wrapper.static_graph)
    inner._has_rebuilt_buckets = False
    if wrapper.static_graph:
        wrapper.static_graph = False  # else it would warn that it is one already
        inner._set_static_graph()
    hooks, inner._comm_hooks = inner._comm_hooks, []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)


def refuse_join(wrapper: DistributedDataParallel, chooses: Callable[[], bool]) -> None:
    """Let `wrapper.join()` raise GateError while a network in it chooses channels.

    Args:
        wrapper: which holds the network.
        chooses: tells whether it does.
    """
    inner: Any = wrapper
    joined = inner.join_hook

    def join_hook(**options: Any) -> Any:
        if chooses():
            raise GateError(
                "ranks with fewer batches cannot wait in DistributedDataParallel.join()",
                why="they take no steps meanwhile, so they do not exchange the channels that the "
                "others do, whose weights they would be given at the end",
                do="give all ranks equally many batches (DistributedSampler(drop_last=True)), or "
                "call gated.settle() before",
            )
        return joined(**options)

    inner.join_hook = join_hook


def refuse_shards(*parts: object) -> None:
    """Refuse what cuts parameters into shards: FullyShardedDataParallel and `fully_shard`.

    Args:
        parts: modules and parameters.

    Raises:
        GateError: one of them does, or is one.
    """
    for part in parts:
        kinds = {kind.__name__ for kind in type(part).__mro__}
        if kinds & {"FullyShardedDataParallel", "FSDPModule", "DTensor"}:
            raise GateError(
                "a gated network cannot be sharded over processes",
                why="channels are exchanged in whole parameters, and a shard holds parts of many",
                do="take torch.nn.parallel.DistributedDataParallel",
            )
