"""Fold: batch norms that follow a convolution or linear layer become part of it."""

import copy
import functools
from collections import Counter
from dataclasses import dataclass

from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fxprune.errors import GateError, described
from fxprune.gated.module import GatedModule
from fxprune.passes.base import Pass, Program, assert_same_function

_NORMS = nn.modules.batchnorm._BatchNorm
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Fold(Pass):
    """Requires a plain network in evaluation mode; the result computes the same function.

    `meta["folded"]` of the result has the layer that each norm became part of, and
    `meta["unfolded"]` why each of the others stays, by their names.
    """

    keys = ("fold",)

    def requires(self, program: Program) -> None:
        if isinstance(program.module, GatedModule):
            raise GateError(
                "cannot fold a gated network",
                why="its batch norms go on to choose channels",
                do='fold what fxprune.shrink(gated) returns, or call shrink(gated, passes="fold")',
            )
        if not isinstance(program.module, fx.GraphModule):
            raise GateError(
                f"cannot fold {described(program.module)}",
                why="which layer a batch norm follows is read from a torch.fx graph",
                do="give what fxprune.shrink returned, or torch.fx.symbolic_trace(model)",
            )
        if program.module.training:
            raise GateError(
                "batch norms can only be folded in evaluation mode",
                why="in training mode their statistics are those of each batch",
                do="call .eval() first",
            )

    def run(self, program: Program) -> Program:
        whole = copy.deepcopy(program.graph_module)
        # without its norms it cannot train: a training graph of its own is left behind
        module = fx.GraphModule(whole, whole.graph, "FoldedModule")
        modules = dict(module.named_modules())
        calls = Counter(node.target for node in module.graph.nodes if node.op == "call_module")
        matrices = functools.cache(lambda: _matrices(program))
        done: dict[str, str] = {}
        stays: dict[str, str] = {}
        for node in list(module.graph.nodes):
            if node.op != "call_module" or not isinstance(modules[node.target], _NORMS):
                continue
            name, maker = str(node.target), node.args[0] if node.args else None
            if not isinstance(maker, fx.Node) or maker.op != "call_module":
                stays[name] = f"it follows {maker}, which is no layer"
                continue
            stays[name] = f"{maker.target} before it cannot take it up"
            alone = len(maker.users) == 1 and calls[node.target] == calls[maker.target] == 1
            if not alone:
                stays[name] = f"it or {maker.target} before it is used elsewhere too"
            folded = _folded(modules[maker.target], modules[node.target]) if alone else None
            if isinstance(folded, nn.Linear) and maker.name not in matrices():
                continue  # in [N, L, C] a batch norm takes L for the channels
            if folded is not None:
                done[name] = str(maker.target)
                modules[maker.target] = folded  # another norm may follow
                module.set_submodule(str(maker.target), folded)
                node.replace_all_uses_with(maker)
                module.graph.erase_node(node)
        module.delete_all_unused_submodules()
        module.recompile()
        module.eval()
        module.meta.update(program.graph_module.meta)
        left = (path for path, child in module.named_modules() if isinstance(child, _NORMS))
        module.meta["folded"] = done
        module.meta["unfolded"] = {
            path: stays.get(path, "it is inside a module that keeps its code") for path in left
        }
        return Program(module, program.inputs)

    def ensures(self, before: Program, after: Program) -> None:
        assert not after.module.training, "the result is in training mode"
        assert_same_function(before, after)


def _folded(maker: nn.Module, norm: nn.Module) -> nn.Module | None:
    """Fold the norm into a copy of the layer; None where the two do not fold."""
    if not isinstance(norm, _NORMS) or norm.running_mean is None:
        return None
    if not (_is_plain(maker) and _is_plain(norm)):
        return None
    if isinstance(maker, (*_CONVS, *_TRANSPOSED)):
        if isinstance(maker, _TRANSPOSED) and maker.groups > 1:
            return None  # the fusion in torch scales the wrong channels of grouped ones
        return fuse_conv_bn_eval(maker, norm, transpose=isinstance(maker, _TRANSPOSED))
    if isinstance(maker, nn.Linear) and maker.out_features == norm.num_features:
        return fuse_linear_bn_eval(maker, norm)
    return None


def _matrices(program: Program) -> frozenset[str]:
    """Collect the nodes that return [N, C], as far as a run on meta tensors tells."""
    clone = copy.deepcopy(program.graph_module).to("meta")
    try:
        ShapeProp(clone).run(*(x.to("meta") for x in program.inputs), enable_io_processing=False)
    except Exception:  # a module that keeps its code may ask for values
        return frozenset()
    found = ((node.name, node.meta.get("tensor_meta")) for node in clone.graph.nodes)
    return frozenset(name for name, seen in found if len(getattr(seen, "shape", ())) == 2)


def _is_plain(layer: nn.Module) -> bool:
    """Tell whether a layer is PyTorch's own and runs on parameters of its own, unchanged by hooks.

    A weight that is computed (weight norm, fake quantisation) cannot be set.
    """
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return type(layer).__module__.startswith("torch.nn.modules.") and not hooked
