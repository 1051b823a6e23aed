"""A traced network: one set of modules, a graph for training and one for evaluation.

Most networks have the same graph in both modes. Where they differ (auxiliary heads, drop path),
`train()` and `eval()` change the graph that runs.
"""

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, fx, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX as EXTRA_STATE

from fxprune.errors import TraceError, described
from fxprune.tracing.deepcopy import copied, rebind
from fxprune.tracing.regions import Region, region_of
from fxprune.tracing.signature import Signature, flat_network, signature_of

ROOT = "fxprune_model"
"""The child that a model is in the network that calls it, where the model keeps its code.

Names leave it out: they are those of the model's own `named_modules()` and `state_dict()`.
"""


@dataclass(frozen=True, eq=False)
class Origin:
    """How the original model's state dict maps to a traced module's tensors.

    Attributes:
        entries: for each key, the name of its tensor in the traced module; or None, and the value
            itself where no graph uses it.
        metadata: the versions that PyTorch keeps beside a state dict, which some modules read.
    """

    entries: dict[str, tuple[str | None, Any]]
    metadata: Any = None

    def state_dict(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a state dict of the original model, with copies of the tensors of these names."""
        state: OrderedDict[str, Any] = OrderedDict()
        for key, (name, value) in self.entries.items():
            value = value if name is None else tensors[name]
            state[key] = value.detach().clone() if isinstance(value, Tensor) else value
        if self.metadata is not None:
            state._metadata = copy.deepcopy(self.metadata)  # type: ignore[attr-defined]
        return state


class TracedModule(fx.GraphModule):
    """A GraphModule that keeps a training and an evaluation graph; they may be the same object.

    Attributes:
        origin: how the original model's state dict maps to this module's tensors.
    """

    def __init__(
        self,
        root: nn.Module,
        train_graph: fx.Graph,
        eval_graph: fx.Graph,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(root, eval_graph)
        known = _targets(eval_graph)
        for target in {} if train_graph is eval_graph else _targets(train_graph):
            if target not in known:
                adopt(self, root, target)
        self.origin = origin or Origin({})
        self._graphs = {True: train_graph, False: eval_graph}
        copy_modes(root, self)
        self._show_graph()

    @property
    def both_graphs(self) -> tuple[fx.Graph, fx.Graph]:
        """The training graph and the evaluation graph; the same object where they agree."""
        return self._graphs[True], self._graphs[False]

    @property
    def graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs that differ: one, or the training graph and the evaluation graph."""
        train, evaluation = self._graphs[True], self._graphs[False]
        return (evaluation,) if train is evaluation else (train, evaluation)

    @property
    def signature(self) -> Signature | None:
        """How the network is called, where that is not just as its graph."""
        return signature_of(self)

    @property
    def regions(self) -> dict[str, Region]:
        """What runs in the place of a module's own code, by the path of the module."""
        found = {path: region_of(child) for path, child in modules_of(self).items()}
        return {path: region for path, region in found.items() if region is not None}

    @property
    def all_graphs(self) -> tuple[fx.Graph, ...]:
        """The graphs that differ, and then those of the regions."""
        inner = (graph for region in self.regions.values() for graph in region.graphs)
        return (*self.graphs, *inner)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules and run that mode's graph from now on."""
        super().train(mode)
        if hasattr(self, "_graphs"):  # GraphModule's own constructor may call this
            self._show_graph()
        return self

    @property
    def keeps_code(self) -> bool:
        """Whether the model keeps its own code, so that the graph is a call of it."""
        return ROOT in self._modules

    def named_modules(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Module]]:
        """Yield all modules by name, those of a model that keeps its code by its own names."""
        for name, module in super().named_modules(*args, **kwargs):
            yield own_name(name), module

    def _named_members(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        for name, member in super()._named_members(*args, **kwargs):
            yield own_name(name), member

    def get_submodule(self, target: str) -> nn.Module:
        """Return the module of a name."""
        inside = self._modules.get(ROOT)
        first = target.partition(".")[0]
        if inside is not None and first not in self._modules and target:
            return inside.get_submodule(target)
        return super().get_submodule(target)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state by name, that of a model that keeps its code by its own names."""
        state = super().state_dict(*args, **kwargs)
        if self.keeps_code:
            for names in (state, getattr(state, "_metadata", {})):
                for name in [name for name in names if own_name(name) != name]:
                    names[own_name(name)] = names.pop(name)
        return state

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if self.keeps_code:
            for name in [name for name in state_dict if name.startswith(prefix)]:
                rest = name.removeprefix(prefix)
                own = rest.partition(".")[0] in self._modules or rest in self._buffers
                if not own and rest != EXTRA_STATE:
                    state_dict[f"{prefix}{ROOT}.{rest}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _show_graph(self) -> None:
        graph = self._graphs[self.training]
        if self.graph is not graph:
            self.graph = graph

    _NOT_COPIED: tuple[str, ...] = ("_graph", "_graphs")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy modules and both graphs; the copy's class is its own, as with any GraphModule."""
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        own = {n: part for n, part in self.__dict__.items() if n not in self._NOT_COPIED}
        clone.__dict__.update(copied(own, memo))
        train = copy.deepcopy(self._graphs[True])
        same = self._graphs[True] is self._graphs[False]
        clone.__dict__["_graphs"] = {
            True: train,
            False: train if same else copy.deepcopy(self._graphs[False]),
        }
        clone.graph = clone._graphs[clone.training]
        return clone


class DraftModule(TracedModule):
    """A traced network whose code is made when it is first run or read; analysis needs none."""

    def recompile(self) -> Any:
        """Drop the code of the graph as it was."""
        self.__dict__.pop("_code", None)
        type(self).forward = DraftModule.forward  # type: ignore[method-assign]

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Make the code, which takes this method's place, and run it."""
        super().recompile()
        return self.forward(*inputs, **options)

    def __getattr__(self, name: str) -> Any:
        if name == "_code":
            super().recompile()
            return self.__dict__[name]
        return super().__getattr__(name)


def require_module(model: object) -> None:
    """Refuse a model of a caller who may have no types.

    Raises:
        TraceError: it is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"the model is {described(model)}, and no nn.Module",
            do="give an nn.Module, such as torchvision.models.resnet18()",
        )


def clone_of(module: TracedModule, tensors: Mapping[int, Tensor]) -> TracedModule:
    """Copy a network and its graphs; it shares all tensors but those given. No deep copy, so quick.

    Args:
        module: the network.
        tensors: for the id of a parameter or buffer, the one to have in its place.
    """
    made: dict[int, Any] = {}

    def copied(child: nn.Module) -> Any:
        if id(child) not in made:
            clone = made[id(child)] = type(child).__new__(type(child))
            clone.__dict__.update(child.__dict__)
            if (region := region_of(child)) is not None:
                clone.__dict__["forward"] = region.on(clone)
            for kind in ("_parameters", "_buffers"):
                held = child.__dict__[kind].items()
                clone.__dict__[kind] = {name: tensors.get(id(t), t) for name, t in held}
            clone.__dict__["_modules"] = {
                name: part if part is None else copied(part)
                for name, part in child._modules.items()
            }
        return made[id(child)]

    clone: TracedModule = copied(module)
    rebind(made)
    train, evaluation = module.both_graphs
    graph = copy.deepcopy(evaluation)
    clone.__dict__["_graphs"] = {
        True: graph if train is evaluation else copy.deepcopy(train),
        False: graph,
    }
    clone.__dict__["_graph"] = clone._graphs[module.training]
    type(clone).forward = type(module).forward
    return clone


def exportable(network: nn.Module) -> nn.Module:
    """Make a network a function of its tensors alone, as torch.export takes it.

    Args:
        network: any; it may be changed and shares its tensors with the result.
    """
    network = flat_network(network)
    if isinstance(network, TracedModule) and network.keeps_code:
        return fx.GraphModule(network, network.graph)  # its names are where its modules are
    return network


def join(path: str, name: str) -> str:
    """Return the path of a module's child."""
    return own_name(f"{path}.{name}" if path else name)


def own_name(name: str) -> str:
    """Return the model's own name for a module or tensor of a network that calls it."""
    return name.replace(f"{ROOT}.", "", 1) if f"{ROOT}." in name else name


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return a module and all in it by name, as `named_modules` does, which takes far longer."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(child: nn.Module, path: str, prefix: str) -> None:
        seen.add(id(child))
        found[path] = child
        for name, part in child._modules.items():
            if part is not None and id(part) not in seen:
                inner = prefix if name == ROOT else f"{prefix}{name}."
                visit(part, prefix + name, inner)

    visit(module, "", "")
    return found


def tensors_of(module: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """Return a module's parameters and buffers by name.

    What has several names has the first of them.

    The same as `named_parameters` and `named_buffers`, in a single walk.
    """
    children = modules_of(module)
    found: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for kind, named in zip(("_parameters", "_buffers"), found, strict=True):
        seen = {id(None)}
        for path, child in children.items():
            for name, tensor in child.__dict__[kind].items():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    named[join(path, name)] = tensor
    return found


@contextlib.contextmanager
def with_tensors(
    module: nn.Module, tensors: Mapping[int, Tensor], *, training: bool = False
) -> Iterator[None]:
    """Put a module into a mode, with other tensors in the place of its own, by id."""
    children = modules_of(module).values()
    others = [child for child in children if child.training != training]
    homes: list[tuple[dict[str, Any], str, Tensor]] = [
        (home, name, own)
        for child in children
        for home in (vars(child)["_parameters"], vars(child)["_buffers"])
        for name, own in home.items()
        if id(own) in tensors
    ]
    try:
        for child in others:
            child.training = training
        for home, name, own in homes:
            home[name] = stand_in(own, tensors[id(own)])
        yield
    finally:
        for home, name, own in homes:
            home[name] = own
        for child in others:
            child.training = not training


def stand_in(own: Tensor | None, other: Tensor) -> Tensor:
    """Make a tensor in the place of a parameter one to `isinstance(…, nn.Parameter)` too."""
    if isinstance(own, nn.Parameter) and not isinstance(other, nn.Parameter):
        other._is_param = True
    return other


def has_leaves(module: TracedModule) -> bool:
    """Tell whether the network runs modules of the user's own."""
    return any(keeps_code(child) for child in modules_of(module).values() if child is not module)


def keeps_code(module: nn.Module) -> bool:
    """Tell whether a module in a traced network is one of the user's own."""
    return not type(module).__module__.startswith("torch.nn.")


def copy_modes(source: nn.Module, graph_module: nn.Module) -> None:
    """Give a GraphModule the modes of its source; fx makes new containers, in training mode."""
    known = modules_of(source)
    for path, module in modules_of(graph_module).items():
        # what has several names is known by the first of them, which may be another there
        own = known[path] if path in known else source.get_submodule(path)
        if own is not module:
            module.training = own.training


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode meanwhile; then each module has its own mode again."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes:  # the outer ones first: train() sets what is inside them too
            if module.training != mode:
                module.train(mode)


def _targets(graph: fx.Graph) -> dict[Any, None]:
    """Return the modules, parameters and buffers that a graph reads, once each, in its order."""
    return dict.fromkeys(n.target for n in graph.nodes if n.op in ("call_module", "get_attr"))


def adopt(module: nn.Module, root: nn.Module, target: str) -> None:
    """Copy the reference to `target` (a module, parameter or buffer) from root to module."""
    *path, name = target.split(".")
    for part in path:
        root = getattr(root, part)
        if not hasattr(module, part):
            setattr(module, part, nn.Module())
        module = getattr(module, part)
    value = getattr(root, name)
    known = getattr(module, name, None)
    if known is not None and not (type(known) is nn.Module and type(value) is not nn.Module):
        return  # a bare module only holds what the other graph reads of this one
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        module.register_buffer(name, value)
    else:
        setattr(module, name, value)
