"""Shrink: the gated network to a plain compact one with the selection that export takes."""

import copy
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxprune.bank.bank import take
from fxprune.channels.records import KEY
from fxprune.channels.resize import resize
from fxprune.errors import GateError
from fxprune.gated.module import GatedModule
from fxprune.gated.nodes import Gated, Tap, remove_taps, to_plain
from fxprune.passes.base import Pass, Program
from fxprune.tracing.module import TracedModule, copy_modes


@dataclass(frozen=True)
class Shrink(Pass):
    """Requires a gated network, which stays as it is; the result has plain modules only."""

    keys = ("shrink",)

    def requires(self, program: Program) -> None:
        if not isinstance(program.module, GatedModule):
            raise GateError(
                f"cannot shrink a {type(program.module).__name__}",
                why="only a gated network has a selection",
                do="call fxprune.instrument first",
            )

    def run(self, program: Program) -> Program:
        assert isinstance(program.module, GatedModule)
        return Program(_compact(program.module), program.inputs)

    def ensures(self, program: Program) -> None:
        assert not any(isinstance(child, (Gated, Tap)) for child in program.module.modules())


def _compact(gated: GatedModule) -> fx.GraphModule:
    """A plain copy of the network, on its own tensors, in the mode that `gated` is in."""
    best, dense = gated.best(), gated.dense_tensors()
    places = gated.bank.places(best.channels, best.widths)
    narrow: dict[int, Tensor] = {}
    for name, tensor in (*gated.named_parameters(), *gated.named_buffers()):
        data = dense[name].detach()
        if name in gated.channels.axes:
            data = take(data, gated.bank.of(name, places))
        else:
            data = data.clone()
        if isinstance(tensor, nn.Parameter):
            data = nn.Parameter(data, tensor.requires_grad)
        narrow[id(tensor)] = data
    train, evaluation = gated.both_graphs
    graph = _untapped(evaluation)
    training = graph if train is evaluation else _untapped(train)
    compact = copy.deepcopy(TracedModule(gated, training, graph), narrow)
    to_plain(compact)
    resize(compact, gated.channels, best.widths)
    compact.recompile()
    for graph in compact.graphs:
        for node in graph.nodes:
            node.meta.pop(KEY, None)
    if len(compact.graphs) == 1:
        plain = fx.GraphModule(compact, compact.graph, "CompactModule")
        copy_modes(compact, plain)
        return plain
    return compact


def _untapped(graph: fx.Graph) -> fx.Graph:
    twin = copy.deepcopy(graph)
    remove_taps(twin)
    return twin
