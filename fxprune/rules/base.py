"""The language in which an op rule is written.

A tensor's labels are *families*: along one of its dimensions, every index carries a label (an
int64 id), and indices whose labels fall together live and die together. A tensor may carry
several families (a weight carries one along its rows and one along its columns). A dimension
without a family has a fixed size. Label 0 means pinned.

A rule sees one ATen call, with meta tensors, and says three things: which labels become equal
(`Context.meet`), which are pinned and why (`Context.pin`), and what the result carries
(`Context.carry`).
"""

import abc
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxprune.channels.graph import Role

PINNED = 0


@dataclass(frozen=True, eq=False)
class Family:
    """The labels along one dimension of a tensor.

    Attributes:
        dim: the dimension, counted from 0.
        labels: int64 [size of the dimension].
        free: whether the dimension only repeats one value, so that nothing depends on its labels.
    """

    dim: int
    labels: Tensor
    free: bool = False

    def at(self, dim: int) -> "Family":
        """The same labels along another dimension."""
        return self if dim == self.dim else Family(dim, self.labels, self.free)


@dataclass(frozen=True)
class Call:
    """One ATen call: its op, its arguments by name, and its results, all on meta tensors."""

    op: OpOverload[Any, Any]
    args: dict[str, Any]
    out: Any
    positional: tuple[Any, ...] = ()
    keywords: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def tensors(self) -> list[Tensor]:
        """The tensor arguments, lists of tensors included, in order."""
        return tensors_in(self.args.values())

    def results(self) -> list[Tensor]:
        """The tensor results."""
        return tensors_in((self.out,))


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values and in the lists, tuples and dicts among them, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


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
    """A convolution whose kernel moves along labels, and gives as many as it takes.

    Attributes:
        node: the node that runs it.
        dim: the dimension of its input.
        rank: the number of that input's dimensions.
        labels: those along the dimension.
    """

    node: Any
    dim: int
    rank: int
    labels: Tensor


Place = tuple[Hashable, ...]
"""Where in a run something was seen; the same place in a run of the compact network."""


@dataclass
class Context:
    """What the rules have said so far about one run of a network.

    Attributes:
        made: the vectors of new labels, in their order; together they are all but the first ones.
        starts: the first label of each.
        choices: what `choose` answered, by the place that asked.
        asked: the places that asked in this run, in order.
        node: the fx node that is running.
        edges: pairs of int64 label tensors of equal length that became equal, element by element,
            and the node that did it.
        computed: those of the edges that tie parameters from which a weight is computed.
        pins: what was pinned, in order.
        sightings: every family a call put on a result: the node it belongs to and its labels.
        readings: every family a call had on an operand, by its place: the number of the graph, the
            name of the node, the op, how often it ran there before, the operand, the dimension.
        products: the multiply-accumulates.
        roles: label tensors with the role their parameter dimension plays.
        gates: for a tensor (by id) its node and the label tensors of the parameters that made it;
            where a norm follows, those of the norm.
        overwritten: the tensors (by id) that were written in place, so that a norm of them is no
            gate point of what was there before.
        conv_inputs: for each convolution, the labels of its weight, the labels (or the size) of
            its input channels, and its number of conv groups.
        slides: the convolutions that slide along labels.
        repeated: labels that stand for others which stood before them in a concatenation.
        opaque: the names of leaves that ask for what is in a tensor.
        mixing: nodes that mix statistics across channels, so that removing a channel changes the
            others (layer norm over channels).
    """

    next_label: int = 1
    made: list[Tensor] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    choices: dict[Place, int] = field(default_factory=dict)
    asked: list[Place] = field(default_factory=list)
    node: Any = None
    edges: list[tuple[Tensor, Tensor, Any]] = field(default_factory=list)
    computed: list[tuple[Tensor, Tensor, Any]] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)
    sightings: list[tuple[Any, Tensor]] = field(default_factory=list)
    readings: list[tuple[Place, Tensor]] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    roles: list[tuple[Tensor, Role]] = field(default_factory=list)
    gates: dict[int, tuple[Any, tuple[Tensor, ...]]] = field(default_factory=dict)
    overwritten: set[int] = field(default_factory=set)
    conv_inputs: list[tuple[Tensor, Tensor | int, int]] = field(default_factory=list)
    slides: list[Slide] = field(default_factory=list)
    repeated: list[Tensor] = field(default_factory=list)
    opaque: set[str] = field(default_factory=set)
    mixing: list[Any] = field(default_factory=list)
    _families: dict[int, tuple[Family, ...]] = field(default_factory=dict)
    _calls: Counter[Place] = field(default_factory=Counter)
    _call: Place = ()
    _parametric: set[int] = field(default_factory=set)
    _alive: list[Tensor] = field(default_factory=list)

    def read(self, graph: int, op: Hashable, operands: Iterable[Tensor]) -> None:
        """Notes what the operands of the next call carry."""
        name = self.node.name
        here = graph, name, op
        often = self._calls[here]
        self._calls[here] = often + 1
        self._call = graph, name, op, often
        for number, operand in enumerate(operands):
            for family in self.of(operand):
                place = graph, name, op, often, number, family.dim
                self.readings.append((place, family.labels))

    def fresh(self, size: int) -> Tensor:
        """New labels: int64 [size]."""
        return self.fresh_vectors([size])[0]

    def fresh_vectors(self, sizes: Sequence[int]) -> Sequence[Tensor]:
        """New labels for several dimensions at once: int64 [size] each."""
        total = sum(sizes)
        labels = torch.arange(self.next_label, self.next_label + total)
        vectors = torch.split_with_sizes(labels, sizes)
        self.made += vectors
        self.starts += accumulate(sizes[:-1], initial=self.next_label)
        self.next_label += total
        return vectors

    def of(self, tensor: Tensor | None) -> tuple[Family, ...]:
        """The families a tensor carries."""
        return () if tensor is None else self._families.get(id(tensor), ())

    def along(self, tensor: Tensor | None, dim: int) -> Tensor | None:
        """The labels along one dimension, or None where its size is fixed.

        A dimension that carries several families (a flattened weight) has all of them made equal.
        """
        families = self._families.get(id(tensor), ())
        found = [family.labels for family in families if family.dim == dim]
        for other in found[1:]:
            self.meet(found[0], other)
        return found[0] if found else None

    def overlay(self, places: Iterable[tuple[Tensor, int]], dim: int, reason: str) -> list[Family]:
        """Lays dimensions of several tensors over each other, index by index.

        Args:
            places: the tensors, and the dimension of each.
            dim: the dimension of the result that they become.
            reason: why the others are pinned where one of them has a fixed size.

        Returns:
            What the result carries along `dim`: one family, or none.
        """
        given = list(places)
        found = [self.along(tensor, own) for tensor, own in given]
        known = next((labels for labels in found if labels is not None), None)
        free = all(f.free for tensor, own in given for f in self.of(tensor) if f.dim == own)
        if known is None or (free and any(labels is None for labels in found)):
            return []
        for labels in found:
            self.meet(known, labels, reason)
        return [Family(dim, known, free)]

    def carry(self, tensor: Tensor, families: Iterable[Family]) -> None:
        """Says what a result carries."""
        kept = tuple(families)
        for family in kept:
            assert tensor.shape[family.dim] == family.labels.numel(), (
                self.node,
                tensor.shape,
                family,
            )
            self.sightings.append((self.node, family.labels))
        self._families[id(tensor)] = kept
        self._alive.append(tensor)

    def meet(self, a: Tensor | None, b: Tensor | None, reason: str = "") -> None:
        """Makes two label tensors equal; where one of them is None (fixed), pins the other."""
        if a is b:
            return
        if a is not None and b is not None:
            self.edges.append((a, b, self.node))
            return
        lone = a if a is not None else b
        assert lone is not None
        self.pin(lone, reason or "it meets a dimension of fixed size")

    def pin(self, labels: Tensor, reason: str, *, structural: bool = False) -> None:
        """Pins labels, with the reason a user will read."""
        self.pins.append(Pin(labels, reason, self.node, structural))

    def pin_all(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Pins whatever the tensors carry."""
        for tensor in tensors:
            for family in self.of(tensor):
                self.pin(family.labels, reason)

    def couple_rows(self, labels: Tensor, rows: int) -> Tensor:
        """Views labels as [rows, n] and makes every row equal to the first, which is returned."""
        if rows == 1:
            return labels
        table = labels.view(rows, -1)
        self.meet(table[1:].reshape(-1), table[:1].expand(rows - 1, -1).reshape(-1))
        return table[0]

    def couple_within_rows(self, labels: Tensor, rows: int) -> Tensor:
        """Views labels as [rows, n] and makes each row one channel; returns its first column."""
        if rows == len(labels):
            return labels
        table = labels.view(rows, -1)
        self.meet(table[:, 1:].reshape(-1), table[:, :1].expand(-1, table.shape[1] - 1).reshape(-1))
        return table[:, 0]

    def choose(self, choice: int, *which: Hashable) -> int:
        """`choice`, or what an earlier run chose at this place: the compact run has to follow it.

        Where labels can be coupled in several ways, what is seen of them differs between the runs.
        A call that asks for several things says for `which`.
        """
        place = *self._call, *which
        self.asked.append(place)
        return self.choices.setdefault(place, choice)

    def has_chosen(self, *which: Hashable) -> bool:
        """Whether an earlier run chose at this place."""
        return (*self._call, *which) in self.choices

    def role(self, tensor: Tensor, labels: Tensor | None, role: Role) -> None:
        """Notes what a parameter's dimension is to its channels; activations have no role."""
        if labels is not None and self.is_parametric(tensor):
            self.roles.append((labels, role))

    def is_parametric(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or computed from parameters alone."""
        return id(tensor) in self._parametric

    def parametric(self, tensor: Tensor) -> None:
        """Notes that a tensor is a parameter or computed from parameters alone."""
        self._parametric.add(id(tensor))
        self._alive.append(tensor)

    def gate(self, out: Tensor, labels: Sequence[Tensor | None]) -> None:
        """Notes which parameters make the channels of `out`, for their saliency."""
        vectors = tuple(vector for vector in labels if vector is not None)
        self.gates[id(out)] = self.node, vectors
        self._alive.append(out)

    def overwrite(self, tensor: Tensor) -> None:
        """Notes that a tensor was written in place."""
        self.overwritten.add(id(tensor))
        self._alive.append(tensor)

    def ungate(self, out: Tensor, node: Any) -> None:
        """Takes back what `node` said of the parameters that make the channels of `out`."""
        if id(out) in self.gates and self.gates[id(out)][0] is node:
            del self.gates[id(out)]

    def multiplies(self, scale: int, *factors: Tensor | int, made: Tensor | None) -> None:
        """Notes multiply-accumulates of the whole batch: scale times the lengths of `factors`."""
        self.products.append(Product(self.node, scale, factors, made))

    def mixes(self) -> None:
        """Notes that the running node mixes statistics across the channels it sees."""
        self.mixing.append(self.node)


class Rule(abc.ABC):
    """What one family of ATen ops does to labels.

    `keys` are op overloads, op packets (`torch.ops.aten.cat` stands for all of its overloads), or
    a `torch.Tag`, which stands for every op that carries it and has no key of its own.
    """

    keys: ClassVar[tuple[Hashable, ...]]

    @abc.abstractmethod
    def __call__(self, context: Context, call: Call) -> None:
        """Says what `call` does. Its arguments may carry no labels."""
