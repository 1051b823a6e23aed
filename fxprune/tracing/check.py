"""Holds a traced network to the model that it was made of."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn

from fxprune.equivalence import SAME, difference
from fxprune.errors import TraceError
from fxprune.tracing.module import TracedModule, tensors_of, with_tensors
from fxprune.tracing.side_effects import left_alone
from fxprune.tracing.signature import Signature


def hold_to_model(model: nn.Module, module: TracedModule, inputs: tuple[Tensor, ...]) -> None:
    """Hold a traced network to the model that it was made of, on random inputs.

    Args:
        model: the user's own, or another traced network; it is called as the user's.
        module: the traced network.
        inputs: example inputs, the batch first; others in their likeness are drawn.

    Raises:
        TraceError: in evaluation mode they compute different things.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    why = ""
    try:
        gap = difference(_alone(model, module.signature), _alone(module), inputs, device)
        if gap is not None and gap > SAME:
            why = f"an output differs by {gap:.1e} of the largest value"
    except Exception as error:  # the model itself ran
        why = f"it raises {type(error).__name__}: {error}"
    if why:
        raise TraceError(
            f"the trace of {type(model).__name__} is another network",
            why=f"on random inputs {why}: forward does what symbolic tracing does not see",
            do="look for results that forward keeps from one call to the next, and for what it "
            "computes outside of torch",
        )


def _alone(network: nn.Module, signature: Signature | None = None) -> Callable[..., Any]:
    """Run a network in evaluation mode on copies of its tensors, so that it stays as it is.

    A traced one runs its evaluation graph, whatever mode it is in; another is called as the
    signature says.
    """
    called: Callable[..., Any]
    if isinstance(network, TracedModule):
        interpreter = fx.Interpreter(network, graph=network.both_graphs[1])
        called = functools.partial(interpreter.run, enable_io_processing=False)
    else:
        called = network if signature is None else signature.caller(network)

    def alone(*inputs: Tensor) -> Any:
        parameters, buffers = tensors_of(network)
        copies = {id(x): x.detach().clone() for x in (*parameters.values(), *buffers.values())}
        with left_alone(network), with_tensors(network, copies):
            return called(*inputs)

    return alone
