"""Trace: any nn.Module to a TracedModule, with the user's line on every node."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fxprune.errors import TraceError
from fxprune.passes.base import Pass, Program
from fxprune.tracing.check import hold_to_model
from fxprune.tracing.module import TracedModule
from fxprune.tracing.trace import trace


@dataclass(frozen=True)
class Trace(Pass):
    """Requires a bare model; the result is a TracedModule that shares its parameters."""

    keys = ("trace",)

    def requires(self, program: Program) -> None:
        model, inputs = program.module, program.inputs
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            raise TraceError(
                f"the model is wrapped in {type(model).__name__}",
                why="the wrapper is not part of the network",
                do="instrument the bare model first, and wrap the gated one",
            )
        given: object = inputs  # a caller without a type checker may hand in anything
        if not isinstance(given, tuple) or not all(isinstance(x, Tensor) for x in given):
            raise TraceError(
                f"example inputs must be a tuple of tensors, not {type(inputs).__name__}",
                do="write (x,) for a single input",
            )

    def run(self, program: Program) -> Program:
        return Program(trace(program.module, program.inputs), program.inputs)

    def ensures(self, before: Program, after: Program) -> None:
        """Holds the trace to the model, on random inputs in evaluation mode.

        Raises:
            TraceError: the two compute different things: `forward` does what tracing cannot see.
        """
        assert isinstance(after.module, TracedModule), "the result is no TracedModule"
        hold_to_model(before.module, after.module, before.inputs)
