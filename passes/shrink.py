"""Shrink: the gated network to a plain compact one with the selection that export takes."""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxprune.bank.bank import take
from fxprune.channels.records import KEY
from fxprune.channels.resize import resize
from fxprune.errors import GateError, described
from fxprune.gated.bare_averages import MADE
from fxprune.gated.links import sums_of
from fxprune.gated.module import GatedModule, example_of
from fxprune.gated.nodes import Gated, Tap, to_plain, untapped
from fxprune.passes.base import Pass, Program, assert_same_function
from fxprune.tracing.module import TracedModule, adopt, copy_modes


@dataclass(frozen=True)
class Shrink(Pass):
    """Requires a gated network, which stays as it is; the result has plain modules only."""

    keys = ("shrink",)

    def requires(self, program: Program) -> None:
        if not isinstance(program.module, GatedModule):
            raise GateError(
                f"cannot shrink {described(program.module)}",
                why="only a gated network has a selection",
                do="call fxprune.instrument first",
            )

    def run(self, program: Program) -> Program:
        assert isinstance(program.module, GatedModule)
        with program.module.paused():
            compact = _compact(program.module)
        inputs = program.inputs or example_of(program.module)
        compact.meta[KEY] = inputs  # for passes that are run on the network later
        compact.meta[MADE] = sums_of(dict(compact.named_parameters()))
        return Program(compact, inputs)

    def ensures(self, before: Program, after: Program) -> None:
        """Compare the compact network with `gated`, if that is in evaluation mode."""
        own = {type(child).__name__ for child in after.module.modules() if _is_of_gates(child)}
        assert not own, f"it still has modules of the gated network: {', '.join(sorted(own))}"
        if not before.module.training:
            assert_same_function(dataclasses.replace(before, inputs=after.inputs), after)


def _is_of_gates(module: nn.Module) -> bool:
    return isinstance(module, (Gated, Tap, GatedModule))


def _compact(gated: GatedModule) -> fx.GraphModule:
    """Copy the network as plain modules on its own tensors, in the mode that `gated` is in."""
    best, dense = gated.best(), gated.dense_tensors()
    positions = gated.bank.positions(best.channels, best.widths)
    narrow: dict[int, Tensor] = {}
    for name, tensor in (*gated.named_parameters(), *gated.named_buffers()):
        data = dense[name].detach()
        if name in gated.channels.axes:
            data = take(data, gated.bank.of(name, positions))
        else:
            data = data.clone()
        if isinstance(tensor, nn.Parameter):
            data = nn.Parameter(data, tensor.requires_grad)
        narrow[id(tensor)] = data
    train, evaluation = gated.both_graphs
    graph = untapped(evaluation)
    training = graph if train is evaluation else untapped(train)
    compact = copy.deepcopy(CompactModule(gated, training, graph), narrow)
    to_plain(compact)
    resize(compact, gated.channels, best.widths)
    compact.recompile()
    for graph in compact.all_graphs:
        graph._tracer_cls = None  # torch.fx traces what it unpickles, with its own tracer then
        for node in graph.nodes:
            node.meta.pop(KEY, None)
    if len(compact.graphs) == 1 and not compact.keeps_code:
        plain = fx.GraphModule(compact, compact.graph, "CompactModule")
        copy_modes(compact, plain)
        return plain
    return compact


class CompactModule(TracedModule):
    """A compact network whose graphs in training and in evaluation differ; it can be pickled."""

    def __reduce__(self) -> Any:
        graphs = [fx.GraphModule(self, graph, "CompactModule") for graph in self.both_graphs]
        for module in graphs:
            copy_modes(self, module)
            module.training = self.training
        return _from_parts, (*graphs, self.training)


def _from_parts(train: fx.GraphModule, evaluation: fx.GraphModule, mode: bool) -> CompactModule:
    """Join two compact networks, one for each mode, which share their modules."""
    known = {node.target for node in evaluation.graph.nodes}
    for node in train.graph.nodes:
        if node.op in ("call_module", "get_attr") and node.target not in known:
            adopt(evaluation, train, str(node.target))
    evaluation.training = mode
    return CompactModule(evaluation, train.graph, evaluation.graph)
