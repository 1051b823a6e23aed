"""Trace: any nn.Module to a TracedModule, with the user's line on every node."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from fxprune.equivalence import batch_of
from fxprune.errors import TraceError
from fxprune.gated.module import GatedModule
from fxprune.passes.base import Pass, Program
from fxprune.rules.base import tensors_in
from fxprune.tracing.check import OtherNetworkError, hold_to_model
from fxprune.tracing.module import TracedModule, keeps_code, modules_of, require_module
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
        require_module(model)
        if isinstance(model, (DataParallel, DistributedDataParallel)):
            raise TraceError(
                f"the model is wrapped in {type(model).__name__}",
                why="the wrapper is not part of the network",
                do="instrument the bare model first, and wrap the gated one",
            )
        for path, part in modules_of(model).items():
            if isinstance(part, GatedModule):
                raise TraceError(
                    f"{repr(path) if path else 'the model'} is a gated network already",
                    why="its parameters hold a selection of channels, which changes",
                    do="instrument the model that it was made of, or fxprune.shrink(gated)",
                )
            if isinstance(part, torch.jit.ScriptModule):
                raise TraceError(
                    f"{repr(path) if path else 'the model'} is a TorchScript module",
                    why="its layers are no modules of Python, which could be made narrower",
                    do="put back the module that was scripted, and script the compact network",
                )
            if not {'"', "\\", "\n", "\r"}.isdisjoint(path):
                raise TraceError(
                    f"the model has a module of the name {path!r}",
                    why="torch.fx writes the name between quotation marks into Python code, where "
                    "a quotation mark, a backslash or a new line would end or change it",
                    do="give it another name",
                )
        if any(map(is_lazy, (*model.parameters(), *model.buffers()))):
            raise TraceError(
                "the model has lazy layers that have not run yet",
                why="they take their sizes from the first input",
                do="run the model once, as model(x), before it is instrumented",
            )
        if batch_of(tensors_in(example_arguments(program.inputs, self.kwargs))) == 0:
            raise TraceError(
                "there is no example among the example inputs",
                why="the batch, their first dimension, has the length 0",
                do="give one example or more",
            )

    def run(self, program: Program) -> Program:
        args, kwargs = example_arguments(program.inputs, self.kwargs)
        own, keeping = self.own_children, self.keeping or _kept_by_names(program.module)
        module = trace(program.module, args, kwargs, own_children=own, keeping=keeping)
        return Program(module, Signature(program.module, args, kwargs).inputs)

    def ensures(self, before: Program, after: Program) -> None:
        """Compare the trace with the model, on random inputs.

        Raises:
            TraceError: the two compute different things: `forward` does what tracing cannot see.
        """
        assert isinstance(after.module, TracedModule), "the result is no TracedModule"
        hold_to_model(before.module, after.module, after.inputs)

    def __call__(self, program: Program) -> Program:
        """Run the pass; if the trace differs from the model, modules of one class keep their code.

        It is the innermost class with which the two agree; as a last resort the model keeps its
        code, and its children are not traced either.
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


ATTRIBUTES = frozenset(
    """
    _bare_averages _code _code_now _copies _create_node_hooks _deepcopy_hooks _erase_node_hooks
    _evaluation _followers _goes_alone _graph _graphs _known _known_widths _leader
    _leader_selection _lineno_map _link _loaded_at _lock _made _pending _prologue_start
    _replace_hooks _residents _selection _selector _settled _since _sums _tracer_cls
    _tracer_extras _training _warned_of_written _wrappers attached bank channels copied_from
    cost inputs meta origin settings shape_env
    """.split()  # noqa: SIM905 - one name a line is a page
)
"""The attributes of a gated network that `dir` of its class does not list."""


def _kept_by_names(model: nn.Module) -> type[nn.Module] | None:
    """Return the model's class if a name in the model is an attribute of a gated network too.

    A child called `graph` or `cost` would take the place of that attribute. A model that keeps its
    code is a child itself, whose names are its own.
    """
    from fxprune.gated.module import GatedModule

    own = {*model._modules, *model._parameters, *model._buffers}
    taken = (set(dir(GatedModule)) | ATTRIBUTES) - set(dir(nn.Module))
    return type(model) if own & taken else None
