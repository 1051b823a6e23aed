"""Trace: any nn.Module to a TracedModule, with the user's line on every node."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.nn.parallel import DataParallel, DistributedDataParallel

from fxprune.errors import TraceError
from fxprune.passes.base import Pass, Program
from fxprune.tracing.check import hold_to_model
from fxprune.tracing.module import TracedModule
from fxprune.tracing.signature import Signature, example_arguments
from fxprune.tracing.trace import trace


@dataclass(frozen=True)
class Trace(Pass):
    """Requires a bare model; the result is a TracedModule that shares its parameters.

    The inputs of the result are the tensors among the example inputs, in the graph's order.

    Attributes:
        kwargs: example inputs by keyword, beside the program's.
    """

    keys = ("trace",)

    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def requires(self, program: Program) -> None:
        model = program.module
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            raise TraceError(
                f"the model is wrapped in {type(model).__name__}",
                why="the wrapper is not part of the network",
                do="instrument the bare model first, and wrap the gated one",
            )
        example_arguments(program.inputs, self.kwargs)

    def run(self, program: Program) -> Program:
        args, kwargs = example_arguments(program.inputs, self.kwargs)
        module = trace(program.module, args, kwargs)
        inputs = Signature(program.module, args, kwargs).inputs
        if module.regions:
            try:
                hold_to_model(program.module, module, inputs)
            except TraceError:  # such as a child that does another thing at each call
                module = trace(program.module, args, kwargs, own_children=False)
        return Program(module, inputs)

    def ensures(self, before: Program, after: Program) -> None:
        """Hold the trace to the model, on random inputs in evaluation mode.

        Raises:
            TraceError: the two compute different things: `forward` does what tracing cannot see.
        """
        assert isinstance(after.module, TracedModule), "the result is no TracedModule"
        hold_to_model(before.module, after.module, after.inputs)
