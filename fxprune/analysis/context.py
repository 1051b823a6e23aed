"""The analyser's notebook: what the rules say of one run of a network."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxprune.channels.graph import Role
from fxprune.rules.base import CallSite, Context, Family


@dataclass(frozen=True)
class Pin:
    """Labels that may not be removed, and why.

    `structural` marks what is no channel at all (a kernel's rows and columns) and is not shown.
    """

    labels: Tensor
    reason: str
    node: Any
    structural: bool = False


@dataclass(frozen=True)
class Product:
    """The macs of a call: `scale` times the lengths of the dimensions that carry `factors`.

    `made` are the labels of the channels that the call makes, to which its macs are ascribed.
    """

    node: Any
    scale: int
    factors: tuple[Tensor | int, ...]
    made: Tensor | None


@dataclass(frozen=True, eq=False)
class Slide:
    """A layer whose window slides along channels, with as many out as in (local response norm).

    Attributes:
        node: the node that runs it.
        dim: the dimension of its input.
        labels: those along the dimension.
    """

    node: Any
    dim: int
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Computed:
    """An ATen call all of whose tensors are parameters or computed from parameters."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any


@dataclass(frozen=True, eq=False)
class Use:
    """A weight whose dimension a node sums over: a removed channel's slice has to be zero.

    Attributes:
        node: the node.
        weight: a meta tensor, a parameter or computed from parameters.
        dim: the dimension.
        labels: those along it.
    """

    node: Any
    weight: Tensor
    dim: int
    labels: Tensor


Mark = tuple[dict[str, int], dict[str, Any]]
"""The lengths of a notebook's lists, and copies of its tables."""

_LISTS = (
    *("asked", "edges", "computed", "pins", "sightings", "readings", "products", "tape", "roles"),
    *("sliding", "repeated", "mixing"),
)
_TABLES = (
    *("choices", "gates", "overwritten", "conv_inputs", "transposed_inputs", "norm_inputs"),
    *("inner", "numbers", "explored", "_calls"),
)


@dataclass
class Notebook(Context):
    """What the rules have said so far about one run of a network.

    Attributes:
        made: the vectors of new labels, in their order; together they are all but the first ones.
        starts: the first label of each.
        choices: what `choose` answered, by the call that asked.
        asked: the calls that asked in this run, in order.
        node: the fx node that is running.
        edges: pairs of int64 label tensors of equal length that became equal, element by element,
            and the node that did it.
        computed: those of the edges that tie parameters from which a weight is computed.
        pins: what was pinned, in order.
        sightings: every family a call put on a result: the node it belongs to and its labels.
        readings: every family an operand carried, and of which call: the number of the graph, the
            name of the node, the op, how often it ran there before, the operand, the dimension.
        products: the multiply-accumulates.
        names: the parameters and buffers by the id of their meta tensors.
        tape: the calls that compute weights from parameters, and where weights are consumed.
        roles: label tensors with a role that their parameter dimension plays in some use.
        gates: for a tensor (by id) its node and the label tensors of the parameters that made it;
            where a norm follows, those of the norm.
        overwritten: the tensors (by id) that were written in place, so that a norm of them is no
            gate point of what was there before.
        conv_inputs: for each parameter that is a convolution's weight, the labels (or the size)
            of the input channels, and the number of conv groups.
        transposed_inputs: the same for transposed convolutions.
        norm_inputs: for each group norm, by its path, the labels of its input, and its groups.
        group_norms: the paths of the modules that are group norms.
        constants: the values of constants in the code, by the id of their meta tensors.
        sliding: the layers that slide along labels.
        repeated: labels that stand for others which stood before them in a concatenation.
        opaque: the names of leaves that ask for what is in a tensor.
        near: the tensors of the last call that was seen, or of the one that failed.
        code_paths: those that ran of each module that keeps its code, by the name of its node.
        explored: snapshots of the modules that ran on each path through their code, by what they
            were given.
        inner: what the nodes of regions carried each time that they ran, by graph and name.
        numbers: what calls compute with, beside tensors and sizes.
        counted: the nodes whose code computes with other numbers in a compact network.
        read_by_calls: the tensors (by id) that calls have read.
        numbering: labels of the channels whose numbers are in a tensor (by id).
        mixing: nodes that mix statistics across channels, so that removing a channel changes the
            others (layer norm over channels), with the labels of these where they are known.
    """

    next_label: int = 1
    made: list[Tensor] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    choices: dict[CallSite, int] = field(default_factory=dict)
    asked: list[CallSite] = field(default_factory=list)
    node: Any = None
    edges: list[tuple[Tensor, Tensor, Any]] = field(default_factory=list)
    computed: list[tuple[Tensor, Tensor, Any]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    sightings: list[tuple[Any, Tensor]] = field(default_factory=list)
    readings: list[tuple[CallSite, Tensor]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    tape: list["Computed | Use"] = field(default_factory=list)
    roles: list[tuple[Tensor, Role]] = field(default_factory=list)
    gates: dict[int, tuple[Any, tuple[Tensor, ...]]] = field(default_factory=dict)
    overwritten: set[int] = field(default_factory=set)
    conv_inputs: dict[str, tuple[Tensor | int, int]] = field(default_factory=dict)
    transposed_inputs: dict[str, tuple[Tensor | int, int]] = field(default_factory=dict)
    norm_inputs: dict[str, tuple[Tensor | int, int]] = field(default_factory=dict)
    group_norms: frozenset[str] = frozenset()
    constants: dict[int, Tensor] = field(default_factory=dict)
    sliding: list[Slide] = field(default_factory=list)
    repeated: list[Tensor] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)
    near: list[Tensor] = field(default_factory=list)
    code_paths: dict[str, list[Any]] = field(default_factory=dict)
    explored: dict[Any, tuple[Any, ...]] = field(default_factory=dict)
    inner: dict[tuple[int, str], tuple[Any, ...]] = field(default_factory=dict)
    numbers: dict[CallSite, list[Any]] = field(default_factory=dict)
    counted: list[Any] = field(default_factory=list)
    read_by_calls: set[int] = field(default_factory=set)
    numbering: dict[int, Tensor] = field(default_factory=dict)
    mixing: list[Any] = field(default_factory=list)
    _families: dict[int, tuple[Family, ...]] = field(default_factory=dict)
    _calls: Counter[CallSite] = field(default_factory=Counter)
    _call: CallSite = ()
    _parametric: set[int] = field(default_factory=set)
    _alive: list[Tensor] = field(default_factory=list)

    def read(self, graph: int, op: Hashable, operands: Iterable[Tensor]) -> None:
        """Note what the operands of the next call carry."""
        name = self.node.name
        here = graph, name, op
        often = self._calls[here]
        self._calls[here] = often + 1
        self._call = graph, name, op, often
        operands = list(operands)
        self.read_by_calls.update(map(id, operands))
        for number, operand in enumerate(operands):
            self.use(operand)
            for family in self.of(operand):
                self.readings.append(((*self._call, number, family.dim), family.labels))

    def use(self, tensor: Tensor) -> None:
        """Pin the channels that are numbered by what is in a tensor, which now is used."""
        if id(tensor) in self.numbering:
            self.pin(self.numbering[id(tensor)], "the code uses the numbers of channels")

    def compute(self, operands: Iterable[Any], sizes: bool) -> None:
        """Note the numbers among the operands of the call that runs; whole ones may be `sizes`."""
        found = (self.constants.get(id(x), x) for x in operands)
        self.numbers[self._call] = [
            x.item() if isinstance(x, Tensor) else x
            for x in found
            if isinstance(x, float)
            or (isinstance(x, int) and not sizes)
            or (isinstance(x, Tensor) and x.numel() == 1 and not x.is_meta)
        ]

    def mark(self) -> Mark:
        """Return what has been said so far, to go back to; labels made meanwhile stay."""
        lists = {name: len(getattr(self, name)) for name in _LISTS}
        return lists, {name: getattr(self, name).copy() for name in _TABLES}

    def go_back(self, mark: Mark) -> None:
        """Forget what was said since a mark."""
        lists, tables = mark
        for name, length in lists.items():
            del getattr(self, name)[length:]
        for name, table in tables.items():
            setattr(self, name, table)

    def fresh(self, size: int) -> Tensor:
        """Return new labels: int64 [size]."""
        return self.fresh_vectors([size])[0]

    def fresh_vectors(self, sizes: Sequence[int]) -> Sequence[Tensor]:
        """Return new labels for several dimensions at once: int64 [size] each."""
        total = sum(sizes)
        labels = torch.arange(self.next_label, self.next_label + total, device="cpu")
        vectors = torch.split_with_sizes(labels, sizes)
        self.made += vectors
        self.starts += accumulate(sizes[:-1], initial=self.next_label)
        self.next_label += total
        return vectors

    def of(self, tensor: Tensor | None) -> tuple[Family, ...]:
        """Return the families a tensor carries."""
        return () if tensor is None else self._families.get(id(tensor), ())

    def carry(self, tensor: Tensor, families: Iterable[Family]) -> None:
        """Say what a result carries."""
        kept = tuple(families)
        for family in kept:
            dim, count = family.dim, family.labels.numel()
            if not 0 <= dim < tensor.dim() or tensor.shape[dim] != count:
                shape = tuple(tensor.shape)
                raise ValueError(f"{count} labels along dimension {dim} of a result {shape}")
            self.sightings.append((self.node, family.labels))
        self._families[id(tensor)] = kept
        self._alive.append(tensor)

    def number(self, result: Tensor, labels: Tensor) -> None:
        """Say that what is in a result are numbers of channels."""
        self.numbering[id(result)] = labels
        self._alive.append(result)

    def meet(self, a: Tensor | None, b: Tensor | None, reason: str = "") -> None:
        """Make two label tensors equal; where one of them is None (fixed), pin the other."""
        if a is b:
            return
        if a is not None and b is not None:
            if a.shape != b.shape:
                raise ValueError(f"{a.numel()} labels meet {b.numel()}")
            self.edges.append((a, b, self.node))
            return
        lone = a if a is not None else b
        assert lone is not None
        self.pin(lone, reason or "the other dimension has a fixed size")

    def pin(self, labels: Tensor, reason: str, *, structural: bool = False) -> None:
        """Pin labels, with the reason a user will read."""
        self.pins.append(Pin(labels, reason, self.node, structural))

    def choose(self, choice: int, *which: Hashable) -> int:
        """Return `choice`, or what an earlier run chose here: the compact run has to follow it.

        Where labels can be coupled in several ways, what is seen of them differs between the runs.
        A call that asks for several things says for `which`.
        """
        site = *self._call, *which
        self.asked.append(site)
        return self.choices.setdefault(site, choice)

    def has_chosen(self, *which: Hashable) -> bool:
        """Tell whether an earlier run chose here."""
        return (*self._call, *which) in self.choices

    def constant(self, tensor: Tensor) -> Tensor | None:
        """Return the values of a constant that stands in the code, if it is one."""
        return self.constants.get(id(tensor))

    def consumes(self, weight: Tensor, dim: int) -> None:
        """Note that the running node sums over a weight's dimension."""
        if not self.is_parametric(weight):
            return
        for family in self.of(weight):
            if family.dim == dim:
                self.tape.append(Use(self.node, weight, dim, family.labels))
                self.roles.append((family.labels, Role.IN))

    def makes(self, weight: Tensor, dim: int) -> None:
        """Note that a weight's slices make channels."""
        labels = self.along(weight, dim)
        if labels is not None and self.is_parametric(weight):
            self.roles.append((labels, Role.OUT))

    def is_parametric(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter or computed from parameters alone."""
        return id(tensor) in self._parametric

    def parametric(self, tensor: Tensor, name: str = "") -> None:
        """Note that a tensor is a parameter (of this name) or computed from parameters alone."""
        if name:
            self.names[id(tensor)] = name
        self._parametric.add(id(tensor))
        self._alive.append(tensor)

    def gate(
        self, out: Tensor, labels: Sequence[Tensor | None], norm_of: Tensor | None = None
    ) -> None:
        """Note which parameters make the channels of `out`."""
        vectors = tuple(vector for vector in labels if vector is not None)
        if norm_of is not None:
            known = id(norm_of) in self.gates and id(norm_of) not in self.overwritten
            if not known or not vectors:
                return
            del self.gates[id(norm_of)]
        self.gates[id(out)] = self.node, vectors
        self._alive.append(out)

    def convolves(
        self, weight: Tensor, source: Tensor | int, groups: int, *, transposed: bool
    ) -> None:
        """Note the input and the conv groups of a convolution.

        They are kept by the name of its weight. A weight that a parametrization computes has the
        name that it would have as a parameter: `conv.weight`, in the module that runs.
        """
        name = self.names.get(id(weight))
        if name is None and self.node.op != "call_module":
            return  # no module has sizes of its own beside it
        name = f"{self.node.target}.weight" if name is None else name
        inputs = self.transposed_inputs if transposed else self.conv_inputs
        if inputs.setdefault(name, (source, groups))[1] != groups:
            self.pin_all([weight], "layers share the weight with different numbers of conv groups")

    def normalises(self, channels: Tensor, groups: int, weight: Tensor | None) -> bool:
        """Note the input and the groups of a group norm; return whether these can be set."""
        path = str(self.node.target)
        if self.node.op == "call_function":
            return self.node.target is F.group_norm
        if path not in self.group_norms:  # a part of what the node calls: its weight says which
            path = self.names.get(id(weight), "").rpartition(".")[0]
        if path not in self.group_norms:
            return False
        self.norm_inputs.setdefault(path, (channels, groups))
        return True

    def slides(self, labels: Tensor, dim: int) -> None:
        """Note that the running node slides along a dimension of its input."""
        self.sliding.append(Slide(self.node, dim, labels))

    def repeats(self, labels: Tensor) -> None:
        """Note labels that repeat others of a concatenation."""
        self.repeated.append(labels)

    def stand_for(self, meta: Tensor, constant: Tensor) -> None:
        """Note the values of a constant for which a meta tensor stands."""
        self.constants[id(meta)] = constant
        self._alive.append(meta)

    def overwrite(self, tensor: Tensor) -> None:
        """Note that a tensor was written in place."""
        self.overwritten.add(id(tensor))
        self._alive.append(tensor)

    def ungate(self, out: Tensor, node: Any) -> None:
        """Take back what `node` noted of the parameters that make the channels of `out`."""
        if id(out) in self.gates and self.gates[id(out)][0] is node:
            del self.gates[id(out)]

    def multiplies(self, scale: int, *factors: Tensor | int, made: Tensor | None) -> None:
        """Note multiply-accumulates of the whole batch: scale times the lengths of `factors`."""
        self.products.append(Product(self.node, scale, factors, made))

    def mixes(self, labels: Tensor | None = None) -> None:
        """Note that the running node mixes statistics across the channels it sees."""
        self.mixing.append((self.node, labels))
