"""Holds a traced network to the model that it was made of."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxprune.equivalence import SAME, difference
from fxprune.errors import TraceError
from fxprune.tracing.module import TracedModule, tensors_of, with_tensors
from fxprune.tracing.side_effects import left_alone
from fxprune.tracing.signature import Signature
from fxprune.tracing.snapshot import Snapshot, snapshot_of


class OtherNetworkError(TraceError):
    """The trace computes something else than the model."""


def hold_to_model(model: nn.Module, module: TracedModule, inputs: tuple[Tensor, ...]) -> None:
    """Hold a traced network to the model that it was made of, on random inputs.

    In evaluation mode, and in training mode where the two have graphs of their own. Where a call
    leaves something in the model, such as a membrane's potential, there is a second one after it.

    Args:
        model: the user's own, or another traced network; it is called as the user's.
        module: the traced network.
        inputs: example inputs, the batch first; others in their likeness are drawn.

    Raises:
        OtherNetworkError: they compute different things.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    both = len(module.graphs) == 2 or any(len(r.graphs) == 2 for r in module.regions.values())
    kept = _copies([*tensors_of(model)[0].values(), *tensors_of(module)[0].values()])
    own, traced = snapshot_of(model), snapshot_of(module)
    why, calls = "", _Calls()
    for training in (False, True)[: 1 + both]:
        try:
            wanted = _alone(model, own, training, kept, calls, module.signature)
            found = _alone(module, traced or own, training, kept, calls)  # which may share layers
            gap = difference(wanted, found, inputs, device)
            if gap is not None and gap > SAME:
                why = f"an output differs by {gap:.1e} of the largest value"
        except Exception as error:  # the model itself ran
            why = f"it raises {type(error).__name__}: {error}"
        if why:
            raise OtherNetworkError(
                f"the trace of {type(model).__name__} does not compute what the model does",
                why=f"on random inputs in {'training' if training else 'evaluation'} mode {why}: "
                "forward does what symbolic tracing does not see",
                do="look for results that forward keeps from one call to the next, and for what "
                "it computes outside of torch",
            )


@dataclass
class _Calls:
    """What the last run has told of how the next one has to be made.

    Attributes:
        several: whether the model was called twice, as the traced network then has to be.
        unseen: whether it may have written to parameters without a change of their version.
    """

    several: bool = False
    unseen: bool = False


def _alone(
    network: nn.Module,
    snapshot: Snapshot | None,
    training: bool,
    kept: dict[int, Tensor],
    calls: _Calls,
    signature: Signature | None = None,
) -> Callable[..., Any]:
    """Return a function that runs a network in one mode on copies of its tensors.

    The network stays as it is. A traced one runs the graph of that mode; another is called as the
    signature says, and decides whether there is a second call. The copies of parameters, `kept`,
    go from run to run, unless one was written to.
    """
    called: Callable[..., Any]
    leads = not isinstance(network, TracedModule)
    if isinstance(network, TracedModule):
        graph = network.both_graphs[not training]
        called = functools.partial(
            fx.Interpreter(network, graph=graph).run, enable_io_processing=False
        )
    else:
        called = network if signature is None else signature.caller(network)

    def alone(*inputs: Tensor) -> Any:
        parameters, buffers = tensors_of(network)
        unseen = calls.unseen
        calls.unseen = snapshot is not None and snapshot.writes
        if unseen or any(copy.is_inference() or copy._version for copy in kept.values()):
            kept.update(_copies(parameters.values()))  # it may have been written to
        copies = {**kept, **_copies(buffers.values())}
        with left_alone(snapshot), with_tensors(network, copies, training=training):
            first = called(*inputs)
            if leads:
                calls.several = snapshot is not None and snapshot.has_changed()
            if not calls.several:
                return first
            others = [x / 2 if x.is_floating_point() else x for x in inputs]
            try:
                return first, called(*others)
            except Exception:
                if not leads:
                    raise
                calls.several = False  # what it keeps may be of no use to a second call
                return first

    return alone


def _copies(tensors: Iterable[Tensor]) -> dict[int, Tensor]:
    """Copy tensors, by id; a copy of torch's own parameter is one."""
    copies = {}
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        copy = tensor.detach().clone()
        own = type(tensor) is nn.Parameter
        copies[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if own else copy
    return copies
