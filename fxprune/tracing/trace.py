"""Any nn.Module to a TracedModule, with the user's line on every node.

Plain symbolic tracing comes first. A submodule whose code it cannot follow (control flow on
values) becomes a leaf by itself, the smallest one that helps, and is run as it is.

There is a graph for training and one for evaluation. The evaluation graph is traced first, and
`self.training` is a proxy there. Where the code only hands it on, as in
`F.dropout(x, p, self.training)`, the training graph is a copy; where the code branches on it, the
model is traced again.
"""

import copy
import inspect
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from fxprune.errors import TraceError
from fxprune.tracing.module import DraftModule, Origin, TracedModule, modules_of, tensors_of
from fxprune.tracing.proxies import MODE, KnowingTracer
from fxprune.tracing.side_effects import Draws, left_alone, seen

_PACKAGE = Path(__file__).parent.parent
_INTERNAL = tuple(
    f"{folder}/"
    for folder in (
        Path(torch.__file__).parent,
        Path(torch.__file__).parents[1] / "torchvision" / "ops",
        _PACKAGE,
        (_PACKAGE / "passes").resolve(),
    )
)

_VALUES = frozenset(
    made
    for name in ("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount")
    for made in (name, getattr(torch, name))
) | {"item", "tolist"}
"""Calls whose result, or its size, depends on what is in a tensor."""

_DRAWS = "the code draws random numbers and does by them what the trace would do every time"


def trace(model: nn.Module, inputs: tuple[Tensor, ...]) -> TracedModule:
    """Traces a model for training and for evaluation; neither it nor its mode changes.

    A model whose code does not ask for its mode has one graph for both.
    """
    own = set(vars(model))
    modes = [(module, module.training) for module in modules_of(model).values()]
    try:
        training, evaluation = _both_graphs(model, inputs)
    finally:
        for module, mode in modes:
            if module.training is not mode:
                module.training = mode
    module = DraftModule(model, training, evaluation)
    for name in vars(model).keys() - own:  # torch.fx's constants, which the module has now
        delattr(model, name)
    parameters, buffers = tensors_of(module)
    names = {id(tensor): name for name, tensor in (parameters | buffers).items()}
    state = model.state_dict(keep_vars=True)
    module.origin = Origin(
        {key: _home(names.get(id(value)), value) for key, value in state.items()},
        getattr(state, "_metadata", None),
    )
    return module


def _both_graphs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[fx.Graph, fx.Graph]:
    """The training graph and the evaluation graph; the same object where they agree."""
    again = any(_has_its_own_modes(module) for module in modules_of(model).values())
    with _Watch() as watch:
        evaluation = _graph(model.eval(), inputs, watch)
    if again or watch.branched:
        training = _graph(model.train(), inputs)
    elif evaluation.find_nodes(op="get_attr", target=MODE):
        training = copy.deepcopy(evaluation)
        _settle_mode(training, True)
    else:
        return evaluation, evaluation
    _settle_mode(evaluation, False)
    same = _calls(training) == _calls(evaluation)
    return evaluation if same else training, evaluation


def _settle_mode(graph: fx.Graph, training: bool) -> None:
    """Puts a value for the nodes that stand for the mode."""
    modes = graph.find_nodes(op="get_attr", target=MODE)

    def settled(node: fx.Node) -> Any:
        return training if node in modes else node

    for mode in modes:
        for user in list(mode.users):
            user.args, user.kwargs = fx.map_arg((user.args, user.kwargs), settled)
        graph.erase_node(mode)


class _Watch:
    """Stands for the attribute `training` of all modules; code that is traced gets a proxy.

    Attributes:
        branched: whether the trace depends on the mode by more than handing it on.
    """

    def __init__(self) -> None:
        self.branched = False
        self._tracer: KnowingTracer | None = None

    def follow(self, tracer: KnowingTracer) -> None:
        """Gives the proxies of this tracer from now on, unless that went wrong before."""
        self._tracer = None if self.branched else tracer

    def give_up(self) -> bool:
        """Gives the true mode from now on; whether that may help a trace that failed."""
        used = self._tracer is not None and bool(self._tracer.modes)
        self.branched |= used
        return used

    def __enter__(self) -> Self:
        nn.Module.training = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        del nn.Module.training

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        if self._tracer is not None and not self._tracer.looking:
            return self._tracer.mode()
        own = module.__dict__
        return own["training"] if "training" in own else module.__getattr__("training")

    def __set__(self, module: nn.Module, mode: bool) -> None:
        module.__dict__["training"] = mode


def _has_its_own_modes(module: nn.Module) -> bool:
    """Whether changing the mode may change more than the attribute `training`."""
    return type(module).train is not nn.Module.train or type(module).eval is not nn.Module.eval


def _home(name: str | None, value: Any) -> tuple[str | None, Any]:
    return (None, value) if name is None else (name, None)


class _Tracer(KnowingTracer):
    """Notes the user's line of every node, and the innermost module whose code stops it.

    One that is `wary` is stopped by code that draws random numbers of its own, which would be the
    same ones for ever.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: tuple[Any, ...],
        leaves: set[str],
        *,
        exact: bool,
        wary: bool,
    ) -> None:
        super().__init__(model, inputs, exact=exact)
        self.leaves, self.wary = leaves, wary
        self.stopped_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves:
            return True
        # its sizes are literals, which can be rewritten only where they stand in the graph
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.Unflatten)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        before = Draws() if self.wary else None
        try:
            result = super().call_module(m, forward, args, kwargs)
            if before is not None and Draws() != before:
                raise fx.proxy.TraceError(_DRAWS)
            return result
        except Exception:
            if self.stopped_in is None:
                self.stopped_in = self.path_of_module(m)
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        called = node.op in ("call_function", "call_method")
        if called and node.target in _VALUES and self.scope.module_path:  # the root can be no leaf
            raise fx.proxy.TraceError("the code asks for what is in a tensor")
        if node.op not in ("placeholder", "output"):
            node.stack_trace = _user_frame()
        return node


def _graph(model: nn.Module, inputs: tuple[Tensor, ...], watch: _Watch | None = None) -> fx.Graph:
    leaves: set[str] = set()
    defaults = _defaults(model, len(inputs))
    exact = wary = False
    while True:
        tracer = _Tracer(model, (*inputs, *defaults.values()), leaves, exact=exact, wary=wary)
        if watch is not None:
            watch.follow(tracer)
        try:
            with left_alone(model) as before, seen(tracer):
                graph = tracer.trace(model, concrete_args=defaults)
                drawn = Draws() != before
            if drawn and wary:
                raise fx.proxy.TraceError(_DRAWS)
        except Exception as error:
            if watch is not None and watch.give_up():
                continue  # what the code could not work with may have been the proxy
            if tracer.stopped_in and tracer.stopped_in not in leaves:
                leaves.add(tracer.stopped_in)
            elif exact:
                raise _refusal(model, error) from error
            exact = exact or not tracer.stopped_in
            continue
        if drawn:
            wary = True
            continue
        if watch is not None:  # what was read and is in no call may have been compared by `is`
            watch.branched |= tracer.branched or not all(node.users for node in tracer.modes)
        _drop_unused_placeholders(graph, len(inputs))
        return graph


def _defaults(model: nn.Module, given: int) -> dict[str, Any]:
    """The parameters of forward that no example input fills, with their defaults.

    Raises:
        TraceError: forward takes fewer inputs than are given, or needs more.
    """
    parameters = list(inspect.signature(type(model).forward).parameters.values())[1:]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return {}
    needed = sum(parameter.default is parameter.empty for parameter in parameters)
    if not needed <= given <= len(parameters):
        raise TraceError(
            f"{type(model).__name__}.forward takes {needed} inputs, and {given} are given",
            do="give one example tensor for each input, the batch first",
        )
    return {parameter.name: parameter.default for parameter in parameters[given:]}


def _drop_unused_placeholders(graph: fx.Graph, given: int) -> None:
    """Removes the inputs that were fixed to their defaults, and fx's checks that they are."""
    for placeholder in [node for node in graph.nodes if node.op == "placeholder"][given:]:
        doomed = [placeholder]
        for node in doomed:
            doomed += [user for user in node.users if user not in doomed]
        for node in reversed(doomed):
            graph.erase_node(node)


def _refusal(model: nn.Module, error: Exception) -> TraceError:
    if isinstance(error, TraceError):
        return error
    frame = error.__traceback__
    at = ""
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if not path.startswith(_INTERNAL):
            at = _line(path, frame.tb_lineno)
        frame = frame.tb_next
    first = (str(error).strip().splitlines() or [""])[0]
    ours = isinstance(error, fx.proxy.TraceError)
    return TraceError(
        f"cannot trace {type(model).__name__}",
        at=at,
        why=first if ours else f"{type(error).__name__}: {first}",
        do="move the code that stops the trace into a submodule of its own: it becomes a leaf",
    )


def _user_frame() -> str | None:
    """The innermost frame of the model's own code, in the form of a traceback."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _graph.__code__:
        path = frame.f_code.co_filename
        if not path.startswith((*_INTERNAL, "<")):
            code = linecache.getline(path, frame.f_lineno).strip()
            return f'File "{path}", line {frame.f_lineno}, in {frame.f_code.co_name}\n    {code}'
        frame = frame.f_back
    return None


def _line(path: str, line: int) -> str:
    return f"{path}:{line}   {linecache.getline(path, line).strip()}"


def _calls(graph: fx.Graph) -> list[Any]:
    """What a graph does, in a form that can be compared with another's."""
    return [
        (node.op, node.target, *(fx.map_arg(a, lambda n: n.name) for a in (node.args, node.kwargs)))
        for node in graph.nodes
    ]
