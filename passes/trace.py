"""Trace: any nn.Module to a TracedModule, with the user's line on every node."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from fxprune.errors import TraceError
from fxprune.passes.base import Pass, Program
from fxprune.tracing.check import OtherNetworkError, hold_to_model
from fxprune.tracing.module import TracedModule, keeps_code, modules_of
from fxprune.tracing.signature import Signature, example_arguments
from fxprune.tracing.trace import trace


@dataclass(frozen=True)
class Trace(Pass):
    """Requires a bare model; the result is a TracedModule that shares its parameters.

    The inputs of the result are the tensors among the example inputs, in the graph's order.

    Attributes:
        kwargs: example inputs by keyword, beside the program's.
        own_children: whether the children of modules that keep their code are traced as well.
        keeping: a class whose modules keep their code, whether it can be followed or not.
    """

    keys = ("trace",)

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    own_children: bool = True
    keeping: type[nn.Module] | None = None

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
        own, keeping = self.own_children, self.keeping
        module = trace(program.module, args, kwargs, own_children=own, keeping=keeping)
        return Program(module, Signature(program.module, args, kwargs).inputs)

    def ensures(self, before: Program, after: Program) -> None:
        """Hold the trace to the model, on random inputs.

        Raises:
            TraceError: the two compute different things: `forward` does what tracing cannot see.
        """
        assert isinstance(after.module, TracedModule), "the result is no TracedModule"
        hold_to_model(before.module, after.module, after.inputs)

    def __call__(self, program: Program) -> Program:
        """Run the pass; where the trace is another network, modules of one class keep their code.

        The innermost class that mends it is taken, and at last the whole model as it is.
        """
        try:
            return super().__call__(program)
        except OtherNetworkError as error:
            wrong = error
        parts = reversed(modules_of(program.module).values())
        kinds = [type(part) for part in parts if keeps_code(part)]
        others = [replace(self, keeping=kind) for kind in dict.fromkeys(kinds)]
        for other in (*others, *(replace(last, own_children=False) for last in others[-1:])):
            with contextlib.suppress(OtherNetworkError):
                return super(Trace, other).__call__(program)
        raise wrong
