"""Label propagation: one run of the network on meta tensors, with labels beside the data.

Every index of every dimension of every parameter and buffer gets a label. The run is an fx
interpretation, so that each ATen call is known to belong to a node; the op rules say what each
call does to labels. The equalities they find are solved once, at the end, as the connected
components of a graph whose vertices are labels.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.aliasing import Aliasing
from fxprune.analysis.context import Notebook
from fxprune.analysis.interpreter import LabelInterpreter, regions_run
from fxprune.analysis.label_mode import LabelMode, rules, ties, to_meta
from fxprune.analysis.labelled import Compact, Labelled
from fxprune.equivalence import batch_of
from fxprune.errors import TraceError
from fxprune.rules.base import Family
from fxprune.tracing.module import (
    TracedModule,
    modules_of,
    tensors_of,
    with_tensors,
)
from fxprune.tracing.side_effects import left_alone
from fxprune.tracing.snapshot import CONSTANT, snapshot_of
from fxprune.user_lines import own_line, shorten, where

Axes = dict[str, dict[int, Tensor]]
"""By the name of a parameter or buffer, the labels of each of its dimensions longer than 1."""


def propagate(
    module: TracedModule, inputs: tuple[Tensor, ...], compact: Compact | None = None
) -> Labelled:
    """Run all of a module's graphs on meta tensors and follow the labels.

    Args:
        module: the traced network; its parameters are not touched.
        inputs: example inputs, of any dtype and device.
        compact: for a network of fewer channels, resized already, how its labels are those of the
            dense one.

    Raises:
        TraceError: the network does not run on inputs of this shape, or returns no tensor.
    """
    rules()  # a broken rule is no fault of the model
    tensors = _visible(module, compact)
    context, meta, axes = _labelled_tensors(module, tensors, compact)
    examples = [tuple(map(to_meta, inputs)) for _ in module.graphs]
    real = {id(meta[name]): tensor for name, tensor in tensors.items()}
    for given in examples:  # of lengths and other whole numbers the values count
        real |= {id(x): own for x, own in zip(given, inputs) if not own.is_floating_point()}
    known: dict[Any, Any] = {}
    runs: list[LabelInterpreter] = []
    aliasing = Aliasing(context, module)
    on_meta = {id(tensor): meta[name] for name, tensor in tensors.items()}
    with left_alone(snapshot_of(module)), with_tensors(module, on_meta):
        for number, (graph, given) in enumerate(zip(module.graphs, examples, strict=True)):
            mode = LabelMode(aliasing, number, known, dense=compact is None)
            first = runs[0] if runs and compact is None else None
            runs.append(LabelInterpreter(module, graph, mode, compact, first, real))
            with regions_run(module, runs[-1]):
                _run(runs[-1], given)
    if compact is None and not any(run.returned for run in runs):
        raise TraceError(
            "the model returns no tensor",
            why="an output is what channels are kept for",
            do="look for a forward without a return",
        )
    of_regions = range(len(runs), len(module.all_graphs))
    inner = [
        {name: seen for (number, name), seen in context.inner.items() if number == own}
        for own in of_regions
    ]
    values = [run.values for run in runs]
    values += [{name: seen[0] for name, seen in own.items()} for own in inner]
    repeated = {name: seen[1:] for own in inner for name, seen in own.items() if len(seen) > 1}
    return Labelled(context, axes, tuple(values), batch_of(inputs), aliasing.copies, repeated)


def _labelled_tensors(
    module: TracedModule, tensors: Mapping[str, Tensor], compact: Compact | None
) -> tuple[Notebook, dict[str, Tensor], Axes]:
    """Make the stand-ins of a network's tensors on the meta device, and their labels.

    A dense network's labels are new; a compact one has those of the dense one that it keeps.

    Args:
        module: the network.
        tensors: its parameters and buffers by name.
        compact: as for `propagate`.

    Returns:
        A notebook that knows them, the stand-ins by name, and the labels of their dimensions.
    """
    parts = modules_of(module).items()
    group_norms = frozenset(path for path, part in parts if isinstance(part, nn.GroupNorm))
    if compact is None:
        context = Notebook(group_norms=group_norms)
        meta = {name: _on_meta(name, tensor) for name, tensor in tensors.items()}
        axes = _fresh_axes(context, meta)
    else:
        choices = dict(compact.dense.context.choices)
        context = Notebook(compact.first_label, choices=choices, group_norms=group_norms)
        known = {
            name: {dim: compact.kept(labels) for dim, labels in compact.dense.axes[name].items()}
            for name in tensors
        }
        meta = {
            name: _compact(tensor, known[name]) if known[name] else _on_meta(name, tensor)
            for name, tensor in tensors.items()
        }
        axes = {
            name: {dim: labels for dim, labels in dims.items() if len(labels) > 1}
            for name, dims in known.items()
        }
    for name, tensor in meta.items():
        context.parametric(tensor, name)
        context.carry(tensor, [Family(dim, labels) for dim, labels in axes[name].items()])
    if compact is None:
        _tie(context, module, {id(tensor): axes[name] for name, tensor in tensors.items()})
    context.sightings.clear()  # parameters are known by their axes
    return context, meta, axes


def _visible(module: TracedModule, compact: Compact | None) -> dict[str, Tensor]:
    """Return the parameters and buffers by name, of those nodes only that have to run."""
    parameters, buffers = tensors_of(module)
    tensors = parameters | buffers
    if compact is None:
        return tensors
    nodes, modules = compact.own_nodes, compact.running[1]
    read = [
        operator.attrgetter(str(node.target))(module) for node in nodes if node.op == "get_attr"
    ]
    seen = {id(value) for value in read}
    for child in modules.values():
        seen |= {id(t) for kind in ("_parameters", "_buffers") for t in vars(child)[kind].values()}
    return {name: tensor for name, tensor in tensors.items() if id(tensor) in seen}


def _tie(context: Notebook, module: TracedModule, axes: Mapping[int, Mapping[int, Tensor]]) -> None:
    """Couple the dimensions of parameters that are one by what their modules are.

    Args:
        context: notes it.
        module: the traced network.
        axes: by the id of a parameter, the labels of its dimensions.
    """
    for part in modules_of(module).values():
        for tie in (tie for kind, tie in ties().items() if isinstance(part, kind)):
            for (one, dim), another in tie(part):
                several = axes.get(id(one), {}).get(dim)
                if another is None and several is not None:
                    context.pin(several, f"{type(part).__name__} couples them by a computed weight")
                elif another is not None and several is not None:
                    single = axes.get(id(another[0]), {}).get(another[1])
                    if single is not None:
                        context.meet(several, single.repeat(len(several) // len(single)))


def _run(interpreter: LabelInterpreter, inputs: tuple[Tensor, ...]) -> None:
    context = interpreter.context
    context.products.clear()  # macs are those of the last graph, which is the evaluation graph
    try:
        with torch.no_grad():
            interpreter.run(*inputs, enable_io_processing=False)
    except Exception as error:
        node = context.node
        first = str(error).strip().splitlines() or [""]
        refused = TraceError(
            f"the model does not run on inputs of shape {[tuple(x.shape) for x in inputs]}",
            at=own_line(error) or (shorten(where(node)) if node is not None else ""),
            why=f"{type(error).__name__}: {first[0]}",
            do=_advice(error, interpreter, inputs),
            node=node.name if node is not None else "",
        )
        refused.near = [family.labels for x in context.near for family in context.of(x)]
        raise refused from error


def _advice(error: Exception, interpreter: LabelInterpreter, inputs: tuple[Tensor, ...]) -> str:
    """Say what to do about an error that the network raised."""
    if "meta" in str(error):
        return "move code that asks for what is in a tensor into a submodule of its own"
    if isinstance(error, AttributeError | NameError | NotImplementedError | ImportError):
        return "correct the model's code: model(*example_inputs) should run"
    weights = [x.dtype for x in interpreter.real.values() if x.is_floating_point()]
    if weights and "type" in str(error) and weights[0] not in {x.dtype for x in inputs}:
        return f"give example inputs of the dtype of the weights, {weights[0]}"
    return (
        "give example inputs of the shape the model takes, with the batch first (for --input "
        "without it); where its code refuses random values (as boxes, or indices), instrument its "
        "backbone alone"
    )


def _fresh_axes(context: Notebook, tensors: Mapping[str, Tensor]) -> Axes:
    dims = {n: [d for d, size in enumerate(t.shape) if size > 1] for n, t in tensors.items()}
    sizes = [tensors[name].shape[dim] for name, own in dims.items() for dim in own]
    vectors = iter(context.fresh_vectors(sizes) if sizes else ())
    return {name: {dim: next(vectors) for dim in own} for name, own in dims.items()}


def _on_meta(name: str, tensor: Tensor) -> Tensor:
    """Make a tensor's stand-in on meta; a number that forward has made itself keeps its value."""
    constant = name.rpartition(".")[2].startswith(CONSTANT) and tensor.dim() == 0
    return tensor.detach().cpu() if constant else to_meta(tensor)


def _compact(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    shape = [len(axes[dim]) if dim in axes else size for dim, size in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype, device="meta")
