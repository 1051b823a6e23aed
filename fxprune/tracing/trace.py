"""Any nn.Module to a TracedModule, with the user's line on every node.

Plain symbolic tracing comes first. A module whose own code it cannot follow (control flow on
values, a loop over the batch) keeps that code: it becomes a leaf, the smallest one that helps, and
its place in the graph is a call of it. The model itself may be one.

There is a graph for training and one for evaluation. The evaluation graph is traced first, and
`self.training` is a proxy there. Where the code only hands it on, as in
`F.dropout(x, p, self.training)`, the training graph is a copy; where the code branches on it, the
model is traced again.
"""

import copy
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from fxprune.draws import Draws
from fxprune.tracing.checkpoints import copy_checkpoints
from fxprune.tracing.constants import renew
from fxprune.tracing.mode import ModeWatch, has_its_own_modes, settle_mode
from fxprune.tracing.module import (
    ROOT,
    DraftModule,
    Origin,
    TracedModule,
    has_leaves,
    modules_of,
    tensors_of,
)
from fxprune.tracing.own_children import Child, Examples, install, traced_children
from fxprune.tracing.proxies import MODE
from fxprune.tracing.side_effects import seen
from fxprune.tracing.signature import CallCodeGen, Signature
from fxprune.tracing.snapshot import CONSTANT, Snapshot
from fxprune.tracing.tracer import DRAWS, Subject, Tracer, wrapped_by


def trace(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    own_children: bool = True,
    keeping: type[nn.Module] | None = None,
) -> TracedModule:
    """Trace a model for training and for evaluation; neither it nor its mode changes.

    A model whose code does not ask for its mode has one graph for both.

    Args:
        model: any module that runs on the example.
        args: its example inputs, positional: tensors, and lists, tuples and dicts of tensors.
        kwargs: those by keyword.
        own_children: whether the children of modules that keep their code are traced as well.
        keeping: a class whose modules keep their code, whether it can be followed or not.

    Raises:
        TraceError: forward does not take these inputs.
    """
    subject = Subject(model, Signature(model, args, kwargs or {}), Snapshot(model), keeping)
    try:
        root, training, evaluation = _both_graphs(subject)
        module = DraftModule(root, training, evaluation)
        children = _children(module, subject) if own_children else {}
    finally:
        subject.snapshot.restore()
    if children:
        install(module, children)
    for name in [name for name in vars(model) if name.startswith(CONSTANT)]:
        delattr(model, name)  # torch.fx's constants, which the module has now
    parameters, buffers = tensors_of(module)
    names = {id(tensor): name for name, tensor in (parameters | buffers).items()}
    state = model.state_dict(keep_vars=True)
    module.origin = Origin(
        {key: _home(names.get(id(value)), value) for key, value in state.items()},
        getattr(state, "_metadata", None),
    )
    return module


def _children(module: TracedModule, subject: Subject) -> dict[int, Child]:
    """Return the children of modules that keep their code, traced."""
    if not has_leaves(module):
        return {}
    draws = Draws()

    def graphs(child: nn.Module, of: Signature, examples: Examples) -> Any:
        subject.snapshot.restore()  # what the runs have left in the model
        return _child_graphs(Subject(child, of, Snapshot(child), subject.keeping, examples))

    try:
        return traced_children(module, subject.model, subject.signature, graphs)
    finally:
        draws.put_back()


def _child_graphs(child: Subject) -> tuple[fx.Graph, fx.Graph] | None:
    """Return the graphs of a child of a module that keeps its code; None where it keeps its own."""
    try:
        root, training, evaluation = _both_graphs(child)
    finally:
        child.snapshot.restore()
    return (training, evaluation) if root is child.model else None


def _both_graphs(subject: Subject) -> tuple[nn.Module, fx.Graph, fx.Graph]:
    """Return the root of the graphs, the training graph and the evaluation graph.

    They may be the same.
    """
    model = subject.model
    again = any(has_its_own_modes(module) for module in modules_of(model).values())
    evaluation = training = None
    if type(model) is not subject.keeping:
        with ModeWatch() as watch:
            evaluation = _graph(subject, watch)
    if evaluation is not None and (again or watch.branched):
        training = _graph(subject, None)
    elif evaluation is not None and evaluation.find_nodes(op="get_attr", target=MODE):
        training = copy.deepcopy(evaluation)
        settle_mode(training, True)
    elif evaluation is not None:
        return model, evaluation, evaluation
    if evaluation is None or training is None:
        holder = nn.Module()
        holder.add_module(ROOT, model)
        graph = _call_of(subject.signature)
        return holder, graph, graph
    settle_mode(evaluation, False)
    same = _calls(training) == _calls(evaluation)
    if same:
        copy_checkpoints(training, evaluation)
    return model, evaluation if same else training, evaluation


def _call_of(signature: Signature) -> fx.Graph:
    """Return the graph of a model that keeps its code: a call of it."""
    graph = fx.Graph()
    inputs = [graph.placeholder(name) for name in signature.names]
    args, kwargs = signature.unflatten(inputs)
    graph.output(graph.call_module(ROOT, args, kwargs))
    if not signature.is_plain:
        graph.set_codegen(CallCodeGen(signature))
    return graph


def _home(name: str | None, value: Any) -> tuple[str | None, Any]:
    return (None, value) if name is None else (name, None)


def _graph(subject: Subject, watch: ModeWatch | None) -> fx.Graph | None:
    """Return the graph of a model for evaluation, with a watch, or for training.

    Returns:
        None where the model has to keep its code.
    """
    exact = wary = False
    while True:
        subject.model.train(watch is None)
        tracer = Tracer(subject, exact=exact, wary=wary)
        if watch is not None:
            watch.follow(tracer)
        try:
            graph, drawn = _attempt(subject, tracer)
        except Exception:
            if watch is not None and watch.give_up():
                continue  # what the code could not work with may have been the proxy
            if exact or subject.examples:  # a child has to take images of all sizes, as its parent
                return None
            exact = True
            continue
        if not drawn:
            break
        wary = True
    if watch is not None:  # what was read and is in no call may have been compared by `is`
        watch.branched |= tracer.branched or not all(node.users for node in tracer.modes)
    for node in tracer.spare:
        if not node.users:
            graph.erase_node(node)
    if tracer.codegen is not None:
        graph.set_codegen(tracer.codegen)
    return graph


def _attempt(subject: Subject, tracer: Tracer) -> tuple[fx.Graph, bool]:
    """Return the graph that a tracer makes, and whether the code drew random numbers meanwhile.

    Raises:
        Exception: whatever stops the trace, also where the code has caught it.
    """
    draws = tracer.draws()
    try:
        with seen(tracer), wrapped_by(tracer):
            graph = tracer.trace(subject.model)
        if tracer.refused:
            raise tracer.refused[-1]
        renew(graph, subject.model, subject.snapshot)
        drawn = tracer.draws() != draws
        if drawn and tracer.wary:
            raise fx.proxy.TraceError(DRAWS)
        return graph, drawn
    finally:
        draws.put_back()
        subject.snapshot.restore()


def _calls(graph: fx.Graph) -> list[Any]:
    """Return what a graph does, in a form that can be compared with another's."""
    return [
        (node.op, node.target, *(fx.map_arg(a, lambda n: n.name) for a in (node.args, node.kwargs)))
        for node in graph.nodes
    ]
