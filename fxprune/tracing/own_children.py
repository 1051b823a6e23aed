"""The children of modules that keep their code are traced on their own, as `Region`s.

A run of the model on its example shows how they are called; runs with a larger batch and with
larger images show what depends on these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.equivalence import which_batched
from fxprune.errors import TraceError
from fxprune.tracing.deepcopy import rebind
from fxprune.tracing.module import TracedModule, join, keeps_code, modules_of
from fxprune.tracing.regions import Region, has_sizes
from fxprune.tracing.signature import Signature
from fxprune.tracing.snapshot import CONSTANT

Examples = tuple[Sequence[Tensor], ...]
"""The tensors of a call for the example, for a larger batch, and for larger images."""

Graphs = Callable[[nn.Module, Signature, Examples], tuple[fx.Graph, fx.Graph] | None]
"""Traces a module for training and for evaluation; None where it has to keep its code."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_ATOMS = (int, float, bool, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class Child:
    """What is known of a child that was traced."""

    signature: Signature
    training: fx.Graph
    evaluation: fx.Graph


Call = tuple[tuple[Any, ...], dict[str, Any]]


def traced_children(
    network: TracedModule, model: nn.Module, signature: Signature, graphs: Graphs
) -> dict[int, Child]:
    """Trace the children of a network's modules that keep their code.

    Args:
        network: the traced network.
        model: the model that it was made of; what its forward leaves in it is not put back.
        signature: how it is called.
        graphs: traces one of them.

    Returns:
        Those that hold literal sizes, by the id of the module.
    """
    leaves = list(leaves_of(network, network.graphs))
    parts = [
        part
        for _, leaf in leaves
        for path, part in modules_of(leaf).items()
        if path and keeps_code(part)
    ]
    if not parts:
        return {}
    seen = [
        _calls(model, signature, times, {id(part): part for part in parts})
        for times in ((1, 1), (2, 1), (1, 2))
    ]
    found: dict[int, Child] = {}
    done: set[int] = set()

    def visit(path: str, module: nn.Module) -> None:
        for name, child in module._modules.items():
            if child is None or id(child) in done:
                continue
            done.add(id(child))
            inside = join(path, name)
            made = _traced(child, [calls.get(id(child)) for calls in seen], graphs)
            if made is None:
                if keeps_code(child) or isinstance(child, _CONTAINERS):
                    visit(inside, child)
                continue
            both = (made.training, made.evaluation)
            if has_sizes(both):
                _rename(both, inside)
                found[id(child)] = made
            for target, leaf in leaves_of(child, both):
                visit(join(inside, target), leaf)

    for path, leaf in leaves:
        visit(path, leaf)
    return found


def install(network: TracedModule, children: Mapping[int, Child]) -> None:
    """Give a network copies of the modules that keep their code, in which regions run.

    Args:
        network: the traced network; its other modules stay the model's own.
        children: what `traced_children` returned.
    """
    clones: dict[int, nn.Module] = {}

    def clone_of(module: nn.Module) -> nn.Module:
        if id(module) in clones or not any(id(part) in children for part in module.modules()):
            return clones.get(id(module), module)
        clone = clones[id(module)] = object.__new__(type(module))
        clone.__dict__.update(module.__dict__)
        for kind in ("_parameters", "_buffers", "_modules"):
            clone.__dict__[kind] = dict(module.__dict__[kind])
        for name, part in module._modules.items():
            if part is not None:
                clone._modules[name] = clone_of(part)
        child = children.get(id(module))
        if child is not None:
            for name in [name for name in vars(module) if name.startswith(CONSTANT)]:
                clone._buffers[name] = clone.__dict__.pop(name)
                delattr(module, name)
            clone.__dict__["forward"] = Region(
                clone, child.signature, child.training, child.evaluation
            )
        return clone

    for target, leaf in list(leaves_of(network, network.graphs)):
        *path, name = target.split(".")
        owner = network.get_submodule(".".join(path))
        owner._modules[name] = clone_of(leaf)
    rebind(clones)


def leaves_of(root: nn.Module, graphs: Sequence[fx.Graph]) -> Iterator[tuple[str, nn.Module]]:
    """Return the modules that graphs call and that keep their code, by their name in the root."""
    targets = [n.target for graph in graphs for n in graph.nodes if n.op == "call_module"]
    for target in dict.fromkeys(map(str, targets)):
        module = root.get_submodule(target)
        if keeps_code(module):
            yield target, module


@torch.no_grad()
def _calls(
    model: nn.Module, signature: Signature, times: tuple[int, int], parts: Mapping[int, nn.Module]
) -> dict[int, Call]:
    """Return the first call of each of some modules, with tensors of the same form; by its id."""
    found: dict[int, Call] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(id(module), pytree.tree_map(_form, (args, dict(kwargs))))

    handles = [part.register_forward_pre_hook(note, with_kwargs=True) for part in parts.values()]
    model.eval()
    try:
        signature.caller(model)(*_larger(signature.inputs, *times))
    except Exception:
        if times == (1, 1):
            return {}
        found.clear()  # such as images of another size
    finally:
        for handle in handles:
            handle.remove()
    return found


def _traced(child: nn.Module, calls: list[Call | None], graphs: Graphs) -> Child | None:
    plain = calls[0]
    if plain is None or not keeps_code(child) or "forward" in vars(child):
        return None
    try:
        signature = Signature(child, *plain)
        others = [None if call is None else Signature(child, *call) for call in calls]
    except TraceError:
        return None
    if not signature.inputs or not all(isinstance(x, _ATOMS) for x in signature.options):
        return None
    if any(other is not None and not signature.is_like(other) for other in others):
        return None  # a number that depends on the batch or the image
    examples = tuple(() if other is None else other.inputs for other in others)
    found = graphs(child, signature, examples)
    return None if found is None else Child(signature, *found)


def _rename(graphs: Sequence[fx.Graph], path: str) -> None:
    """Make the names of the nodes others than those of all other graphs of the network."""
    begin = path.replace(".", "_")
    for graph in {id(graph): graph for graph in graphs}.values():
        for node in graph.nodes:
            node._rename(f"{begin}__{node.name}")


def _form(value: Any) -> Any:
    """Return a tensor like another, on its device, that takes no memory."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty((), dtype=value.dtype, device=value.device).expand(value.shape)


def _larger(inputs: Sequence[Tensor], batch: int, image: int) -> Iterator[Tensor]:
    """Yield inputs repeated so many times along the batch, and along the sides of an image."""
    for x, batched in zip(inputs, which_batched(inputs)):
        times = [batch if batched else 1, 1, *[image] * (x.dim() - 2)][: x.dim()]
        yield x.repeat(times) if x.dim() else x
