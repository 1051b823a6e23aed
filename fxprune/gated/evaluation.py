"""Evaluation: a view of another selection, which a forward sees and nothing else does.

Outside a forward the parameters hold the training selection, in any mode. A forward in evaluation
mode runs code of its own, whose sizes are those of the selection that export would take, on
tensors that are gathered for it. They stand in the modules' tables while the forward runs, as
`torch.func.functional_call` has them.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, fx, nn

from fxprune.bank.bank import Bank, put, take
from fxprune.bank.exchange import Selection
from fxprune.bank.kept import KeptView
from fxprune.bank.view import View
from fxprune.channels.graph import ChannelGraph, Widths
from fxprune.channels.resize import resize_parts
from fxprune.gated.nodes import is_gated, untapped
from fxprune.gated.residents import Residents
from fxprune.tracing.code_state import CodeState, names_in
from fxprune.tracing.module import TracedModule, keeps_code, modules_of, stand_in
from fxprune.tracing.regions import Code, function_of

_Table = MutableMapping[str, Tensor | None]
_Method = TypeVar("_Method", bound=Callable[..., Any])


class _Site(NamedTuple):
    """A table of a module in which a resident stands under a key.

    Attributes:
        module: the module.
        kind: the name of the table.
        key: the resident's in it.
        name: of the resident in the network.
        asked: whether code of the user's may ask if it is a parameter.
        unseen: whether a forward may write to it without a change of its version.
    """

    module: nn.Module
    kind: str
    key: str
    name: str
    asked: bool
    unseen: bool

    @property
    def table(self) -> _Table:
        """The table."""
        found: _Table = getattr(self.module, self.kind)
        return found


def untraced(method: _Method) -> _Method:
    """Leave `torch.jit.trace`, whose check fails where a first forward does more than a second."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        torch_c: Any = torch._C  # whose stubs lack the setter
        state = torch_c._get_tracing_state()
        torch_c._set_tracing_state(None)
        try:
            return method(*args, **kwargs)
        finally:
            torch_c._set_tracing_state(state)

    alike: Any = called
    found: _Method = alike
    return found


class Evaluation:
    """What the forwards of evaluation run: code, sizes, and where the tensors come from.

    Attributes:
        shown: the selection that they show; None if there is none yet.
    """

    def __init__(self) -> None:
        self._trained: Selection | None = None
        self.shown: Selection | None = None
        self._stale = True
        self._bank: Bank | None = None  # none where the residents are what is shown for good
        self._is_same = False  # whether they are now
        self._view: View | None = None  # made when a forward needs it
        self._was_compiled = False
        self._kept: KeptView | None = None  # what the last forward without a graph has shown
        self._may_keep = False
        self._structure: object = None  # that in which the sites were found
        self._sites: list[_Site] = []
        self._asked: list[_Site] = []  # of which code of the user's may ask what they are
        self._tables: list[tuple[_Table, dict[str, str]]] = []  # names by key
        self._sizes: list[tuple[nn.Module, dict[str, Any]]] = []
        self._graphs: dict[bool, fx.Graph] = {}
        self._codes: dict[bool, Code] = {}
        self._widths: Widths | None = None
        self._left: list[tuple[_Table, dict[str, Tensor | None]]] = []

    @property
    def stale(self) -> bool:
        """Whether the selection that is shown may be another's by now."""
        return self._stale

    @stale.setter
    def stale(self, stale: bool) -> None:
        self._stale = stale
        if stale:
            self._kept = None

    def kept(self) -> Iterable[Tensor]:
        """Return the tensors that are kept between forwards."""
        return () if self._kept is None else self._kept.tensors.values()

    def prepare(
        self,
        network: TracedModule,
        channels: ChannelGraph,
        residents: Residents,
        trained: Selection,
        shown: Selection,
        settled: bool,
    ) -> None:
        """Prepare to show a selection.

        Args:
            network: the gated network.
            channels: its channel graph.
            residents: its residents.
            trained: the selection of the residents.
            shown: the selection to show.
            settled: whether the two stay the same. Otherwise a network that is compiled treats them
                as two even where they are equal by chance, or it would need code for both cases.
        """
        same = shown.widths == trained.widths and torch.equal(shown.channels, trained.channels)
        self._is_same, self._view = same, None
        self._bank = None if same and settled else residents.bank
        self._kept, self._may_keep = None, self._bank is not None and trained.stays_in(shown)
        if self._structure is not residents.structure:
            self._structure = residents.structure
            self._find_sites(network, residents.tensors())
        self._sizes = []
        if shown.widths != trained.widths:
            self._sizes = list(_sizes(network, channels, shown.widths))
            self._sizes += _regions(network, channels, shown.widths)
        self._compile(network, channels, shown.widths)
        self._trained, self.shown, self.stale = trained, shown, False
        if self._was_compiled:  # the code that was compiled reads the view
            self._plan()

    def _find_sites(self, network: TracedModule, residents: Mapping[str, Tensor]) -> None:
        self._sites = list(_sites(network, residents))
        self._asked = [site for site in self._sites if site.asked]
        by_table = itertools.groupby(self._sites, key=lambda site: id(site.table))
        each_table = [[*sites] for _, sites in by_table]
        self._tables = [(sites[0].table, {s.key: s.name for s in sites}) for sites in each_table]

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    @torch.inference_mode(False)
    @torch.no_grad()
    @untraced
    def _plan(self) -> None:
        """Make the view, if there is none; torch.compile runs this while it traces a forward."""
        self._was_compiled = self._was_compiled or torch.compiler.is_compiling()
        if self._view is None and self._bank is not None:
            assert self._trained is not None
            assert self.shown is not None
            self._view = View(self._bank, self._trained, self.shown)

    def run(self, network: nn.Module, residents: Residents, *args: Any, **kwargs: Any) -> Any:
        """Run the code of what is shown."""
        code = self._codes[network.training]
        if torch.compiler.is_compiling():
            self._plan()
        if self._bank is None or (not self._was_compiled and self._is_same):
            return code(network, *args, **kwargs)
        kept = self._current(residents) if _makes_no_graph() and self._may_keep else None
        if kept is None:
            self._plan()
            assert self._view is not None
            tensors = self._mark(self._view(residents.tensors()))
        else:
            tensors = kept(residents.tensors())
        buffers = [site for site in self._sites if site.kind == "_buffers"]
        versions = [_version(tensors[site.name]) for site in buffers]
        with self._standing_in(tensors):
            result = code(network, *args, **kwargs)
        written = {  # a norm in training mode writes
            site.name: tensors[site.name]
            for site, version in zip(buffers, versions, strict=True)
            if site.module.training or site.unseen or _version(tensors[site.name]) != version
        }
        if written:
            self._keep(residents, written)
        if kept is not None and kept.were_written:
            self._kept = None
        return result

    @torch.inference_mode(False)
    @torch.no_grad()
    def _current(self, residents: Residents) -> KeptView:
        """Return the kept view; a new one where the bank was written to since."""
        if self._kept is None or not self._kept.is_current:
            assert self._trained is not None
            assert self.shown is not None
            self._kept = None  # before another one takes memory
            self._kept = KeptView(residents.bank, self._trained, self.shown)
            self._mark(self._kept.tensors)
        return self._kept

    def _mark(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Mark the tensors in the place of parameters as `nn.Parameter` to `isinstance`."""
        for site in self._asked:
            stand_in(site.table[site.key], tensors[site.name])
        return tensors

    def restore(self) -> None:
        """Put the residents back that an interrupted forward has left out."""
        for table, own in self._left:
            table.update(own)
        self._left = []

    @contextmanager
    def _standing_in(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        own = [(table, {key: table[key] for key in names}) for table, names in self._tables]
        sizes = [(m, {k: getattr(m, k) for k in sizes}) for m, sizes in self._sizes]
        self._left = own
        try:
            for table, names in self._tables:
                table.update({key: tensors[name] for key, name in names.items()})
            _set_sizes(self._sizes)
            yield
        finally:
            self.restore()
            _set_sizes(sizes)

    @torch.no_grad()
    def _keep(self, residents: Residents, written: Mapping[str, Tensor]) -> None:
        """Store the statistics that a forward has measured, as those of the channels shown."""
        bank, trained = residents.bank, self._trained
        assert self.shown is not None
        assert trained is not None
        before = bank.positions(trained.channels, trained.widths)
        after = bank.positions(self.shown.channels, self.shown.widths)
        own = residents.tensors()
        for name, value in written.items():
            put(bank.dense[name], bank.of(name, before), own[name])
            put(bank.dense[name], bank.of(name, after), value)
            own[name].copy_(take(bank.dense[name], bank.of(name, before)))

    def _compile(self, network: TracedModule, channels: ChannelGraph, widths: Widths) -> None:
        """Make the code of both modes at some widths."""
        if self._widths == widths:
            return
        train, evaluation = network.both_graphs
        if not self._graphs:
            copied = untapped(evaluation)
            self._graphs = {
                False: copied,
                True: copied if train is evaluation else untapped(train),
            }
        graphs = {id(graph): graph for graph in self._graphs.values()}
        nodes = (node for graph in graphs.values() for node in graph.nodes)
        resize_parts(network, (), nodes, channels, widths)
        codes = {key: function_of(network, graph) for key, graph in graphs.items()}
        self._codes = {mode: codes[id(graph)] for mode, graph in self._graphs.items()}
        self._widths = widths


def _makes_no_graph() -> bool:
    """Tell whether nothing of a forward lasts: no graph, no trace, no transformation."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _sites(network: TracedModule, residents: Mapping[str, Tensor]) -> Iterator[_Site]:
    """Find all places in which residents stand; a tied one stands in several."""
    names = {id(tensor): name for name, tensor in residents.items()}
    unseen = set(_written_by_data(network))
    for child in modules_of(network).values():
        for kind in ("_parameters", "_buffers"):
            for key, tensor in child.__dict__[kind].items():
                if id(tensor) in names:
                    asked = keeps_code(child) and not is_gated(child)
                    by_code = asked and kind == "_buffers" and _names_data(child)
                    yield _Site(
                        child, kind, key, names[id(tensor)], asked, by_code or id(tensor) in unseen
                    )


def _written_by_data(network: TracedModule) -> Iterator[int]:
    """Yield the ids of tensors whose `data` the graphs read, and may write to."""
    roots: list[tuple[nn.Module, fx.Graph]] = [(network, graph) for graph in network.graphs]
    roots += [(r.module, graph) for r in network.regions.values() for graph in r.graphs]
    for root, graph in roots:
        for node in graph.find_nodes(op="call_function", target=getattr):
            if node.args[1] == "data" and node.args[0].op == "get_attr":
                yield id(operator.attrgetter(node.args[0].target)(root))


def _names_data(module: nn.Module) -> bool:
    """Tell whether a module's code may write to a tensor by its `data`."""
    code = CodeState()
    for root in (type(module), *vars(module).values()):
        code.note(root)
    return any("data" in names_in(function.__code__) for function in code.functions)


def _sizes(
    network: TracedModule, channels: ChannelGraph, widths: Widths
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Return the attributes of modules that are others at some widths.

    The modules stay as they are.
    """
    children, clones = modules_of(network), {}
    for path, child in children.items():
        clone = clones[path] = object.__new__(type(child))
        clone.__dict__.update(child.__dict__)
    resize_parts(network, clones.items(), (), channels, widths)
    for path, clone in clones.items():
        child = children[path]
        own, new = child.__dict__, clone.__dict__
        changed = {k: v for k, v in new.items() if v is not own.get(k) and v != own.get(k)}
        if changed:
            yield child, changed


def _regions(
    network: TracedModule, channels: ChannelGraph, widths: Widths
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Return the modules whose own code a region stands for, with the region at some widths."""
    for region in network.regions.values():
        clone = region.on(region.module)
        nodes = (node for graph in clone.graphs for node in graph.nodes)
        resize_parts(network, (), nodes, channels, widths)
        clone.recompile()
        yield region.module, {"forward": clone}


def _set_sizes(sizes: list[tuple[nn.Module, dict[str, Any]]]) -> None:
    for module, values in sizes:
        for key, value in values.items():
            setattr(module, key, value)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to; 0 where that is not counted."""
    return 0 if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
