"""Gate: a traced network whose channels are known to the gated network that trains narrow."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.channels.graph import Axis, ChannelGraph
from fxprune.channels.records import KEY, Record, Shape
from fxprune.errors import GateError
from fxprune.gated.module import GatedModule, Settings
from fxprune.gated.nodes import TAP, Tap
from fxprune.gated.unattached import WATCH
from fxprune.passes.base import Pass, Program
from fxprune.tracing.module import TracedModule, tensors_of


@dataclass(frozen=True)
class Gate(Pass):
    """Requires a network that was coupled; the result is a GatedModule with its own tensors.

    Attributes:
        settings: the policy, the budget, and how often to select.
    """

    keys = ("gate",)

    settings: Settings

    def requires(self, program: Program) -> None:
        parameters, buffers = tensors_of(program.module)
        empty = [name for name, tensor in (parameters | buffers).items() if tensor.is_meta]
        if empty:
            raise GateError(
                f"{empty[0]} of the model is on the meta device",
                why="it has a shape and no values, which a training starts from",
                do="build the model on a real device; fxprune.analyze takes it as it is",
            )
        if program.channels is None or not program.channels.groups:
            reasons = [] if program.channels is None else program.channels.pinned
            raise GateError(
                "the model has no channel that could be removed",
                why="\n".join(f"{p.channels} channels: {p.reason}" for p in reasons[:5]),
                do="`fxprune inspect` shows each pinned channel with its reason",
            )

    def run(self, program: Program) -> Program:
        assert isinstance(program.module, TracedModule)
        assert program.channels is not None
        dense = copy.deepcopy(program.module, _aliases(program.module, program.channels))
        if self.settings.policy.observes == "sample":
            _tap(dense, program.channels)
        gated = GatedModule(dense, program.channels, self.settings, program.inputs)
        _carry_hooks(program.module, gated)
        WATCH.begin()
        return Program(gated, program.inputs, program.channels)

    def ensures(self, before: Program, after: Program) -> None:
        """Check that the gated network, bank included, has the dense values it was given."""
        assert isinstance(before.module, TracedModule)
        assert isinstance(after.module, GatedModule), "the result is no GatedModule"
        parameters, buffers = tensors_of(before.module)
        dense = after.module.dense_tensors()
        for name, tensor in (parameters | buffers).items():
            found = dense.get(name)
            assert found is not None, f"{name} is missing"
            assert _equal(found, tensor), f"{name} has other values"


def _equal(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors are equal, NaN counting as equal to itself."""
    a, b = a.detach(), b.detach()
    return torch.equal(a, b) or (
        a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


def _aliases(module: TracedModule, channels: ChannelGraph) -> dict[int, Tensor]:
    """Map each gated tensor's id to another on the same memory that the bank has a copy of."""
    parameters, buffers = tensors_of(module)
    tensors = parameters | buffers
    aliases = {}
    for name in channels.axes:
        tensor = tensors[name]
        data = tensor.clone().detach() if tensor.is_inference() else tensor.detach()
        owned = isinstance(tensor, nn.Parameter)
        aliases[id(tensor)] = nn.Parameter(data, tensor.requires_grad) if owned else data
    return aliases


def _carry_hooks(source: nn.Module, gated: GatedModule) -> None:
    """Give the residents the gradient hooks of the parameters; they see narrow gradients."""
    residents: dict[str, Any] = dict(gated.named_parameters())
    for name, parameter in tensors_of(source)[0].items():
        resident = residents.get(name)
        if resident is None:
            continue
        for hook in (parameter._backward_hooks or {}).values():
            resident.register_hook(hook)
        after: Any = getattr(parameter, "_post_accumulate_grad_hooks", None)
        for hook in (after or {}).values():
            resident.register_post_accumulate_grad_hook(hook)


def _tap(module: TracedModule, channels: ChannelGraph) -> None:
    """Put a tap behind every gate point that is a node of its own."""
    for number, gate in enumerate(channels.gates):
        name, dim = gate.parameters[0]
        points = [
            (graph, node, along)
            for graph in module.graphs
            for node in graph.nodes
            if node.name in gate.nodes and (along := _dim_of(node, channels.axes[name][dim]))
        ]
        for graph, node, along in points:
            module.add_module(f"{TAP}{number}", Tap(along))
            _insert(graph, node, f"{TAP}{number}")
    module.recompile()


def _dim_of(node: fx.Node, axis: Axis) -> int | None:
    """Find the dimension of a node's tensor that the axis runs along; None where there is none."""
    result = node.meta[KEY].result
    if not isinstance(result, Shape):
        return None
    return next((dim for dim, own in result.axes.items() if own is axis), None)


def _insert(graph: fx.Graph, node: fx.Node, target: str) -> None:
    with graph.inserting_after(node):
        tap = graph.call_module(target, (node,))
    node.replace_all_uses_with(tap, delete_user_cb=lambda user: user is not tap)
    tap.meta[KEY] = Record(node.meta[KEY].result, target, (None,), {})
    tap.stack_trace = node.stack_trace
