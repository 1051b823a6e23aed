"""The language in which an op rule is written.

A tensor's labels are *families*: along one of its dimensions, every index carries a label (an
int64 id), and indices whose labels become equal are one channel. A tensor may carry several
families (a weight carries one along its rows and one along its columns). A dimension without a
family has a fixed size. Label 0 means pinned.

A rule sees one ATen call, with meta tensors, and says three things: which labels become equal
(`Context.meet`), which are pinned and why (`Context.pin`), and what the result carries
(`Context.carry`).
"""

import abc
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch._ops import OpOverload

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
        """Copy the family with the same labels along another dimension."""
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
        """List the tensor arguments, lists of tensors included, in order."""
        return tensors_in(self.args.values())

    def results(self) -> list[Tensor]:
        """List the tensor results."""
        return tensors_in((self.out,))


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Find the tensors among values and in their lists, tuples and dicts, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


CallSite = tuple[Hashable, ...]
"""Which call of a run: the graph, node, op and how often before; the same in a compact run."""


class Context(abc.ABC):
    """The methods by which a rule reads labels and states what an op does to them.

    Most rules need five of its methods: `of` and `along` tell what a tensor carries, `meet` and
    `pin` say what becomes of labels, `carry` says what a result carries. Layers that multiply by
    weights also say `consumes`, `makes`, `gate` and `multiplies`.
    """

    @abc.abstractmethod
    def of(self, tensor: Tensor | None) -> tuple[Family, ...]:
        """Return the families a tensor carries."""

    @abc.abstractmethod
    def carry(self, tensor: Tensor, families: Iterable[Family]) -> None:
        """Set the families that a result carries."""

    @abc.abstractmethod
    def number(self, result: Tensor, labels: Tensor) -> None:
        """Say that what is in a result are numbers of channels, which are pinned if it is used.

        Such as the indices of `x.max(1)`, which most code leaves.
        """

    @abc.abstractmethod
    def meet(self, a: Tensor | None, b: Tensor | None, reason: str = "") -> None:
        """Make two label tensors equal; where one of them is None (fixed), pin the other.

        Where both are None there is nothing to say.

        Args:
            a: labels, int64 [n].
            b: labels of the same length.
            reason: why labels that meet a fixed size are pinned, as a user will read it.
        """

    @abc.abstractmethod
    def pin(self, labels: Tensor, reason: str, *, structural: bool = False) -> None:
        """Pin labels.

        Args:
            labels: of the channels that cannot be removed.
            reason: why, as a user will read it.
            structural: whether they are no channels at all, but positions that stay at any width;
                a user is not told of them.
        """

    @abc.abstractmethod
    def fresh(self, size: int) -> Tensor:
        """Make new labels: int64 [size]."""

    @abc.abstractmethod
    def choose(self, choice: int, *which: Hashable) -> int:
        """Return `choice`, or the choice of an earlier run at this call, which has to be repeated.

        Where labels can be coupled in several ways, what is seen of them differs between the runs.
        A call that asks for several things says for `which`.
        """

    @abc.abstractmethod
    def has_chosen(self, *which: Hashable) -> bool:
        """Tell whether an earlier run chose here."""

    @abc.abstractmethod
    def constant(self, tensor: Tensor) -> Tensor | None:
        """Return the values of a constant that stands in the code (`x[:, [2, 0]]`)."""

    @abc.abstractmethod
    def consumes(self, weight: Tensor, dim: int) -> None:
        """Say that the running call sums over a weight's dimension.

        So a removed channel counts for nothing where the weight's slice is zero. That is noted
        for parameters and what is computed from them; of other tensors nothing is noted.
        """

    @abc.abstractmethod
    def makes(self, weight: Tensor, dim: int) -> None:
        """Say that the slices of a weight along a dimension make the channels of the result."""

    @abc.abstractmethod
    def is_parametric(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter or computed from parameters alone."""

    @abc.abstractmethod
    def gate(
        self, out: Tensor, labels: Sequence[Tensor | None], norm_of: Tensor | None = None
    ) -> None:
        """Say which parameters make the channels of `out`, so that saliencies are read there.

        Args:
            out: the result of a layer, [N, C, …] or [N, …, C].
            labels: those of the layer's parameters along C.
            norm_of: for a norm, its input; it takes over the input's gate point, if it is one.
        """

    @abc.abstractmethod
    def convolves(
        self, weight: Tensor, source: Tensor | int, groups: int, *, transposed: bool
    ) -> None:
        """Say of a convolution what the shape of its weight does not tell.

        Args:
            weight: its weight, [O, I/G, …] or, transposed, [I, O/G, …].
            source: the labels of its input channels, or their number where it is fixed.
            groups: G, its number of conv groups.
            transposed: whether it is transposed.
        """

    @abc.abstractmethod
    def normalises(self, channels: Tensor, groups: int, weight: Tensor | None) -> bool:
        """Say of a group norm what its weight does not tell.

        Args:
            channels: the labels of its input channels.
            groups: its number of groups.
            weight: its weight, if it has one.

        Returns:
            Whether the number of groups can be set at other widths.
        """

    @abc.abstractmethod
    def slides(self, labels: Tensor, dim: int) -> None:
        """Say that the running layer's window slides along labels and gives as many as it takes.

        Args:
            labels: those of the channels, int64 [C].
            dim: their dimension in the layer's input.
        """

    @abc.abstractmethod
    def repeats(self, labels: Tensor) -> None:
        """Say that labels stand for others which stand before them in a concatenation."""

    @abc.abstractmethod
    def multiplies(self, scale: int, *factors: Tensor | int, made: Tensor | None) -> None:
        """Note multiply-accumulates (macs) of the whole batch: a number times some lengths.

        Args:
            scale: the number that no width changes, such as the positions of a kernel.
            factors: labels, which count as many as are kept, or sizes that are fixed.
            made: the labels of the channels that the layer makes, to which its macs are booked.
        """

    @abc.abstractmethod
    def mixes(self, labels: Tensor | None = None) -> None:
        """Note that the running node mixes statistics across the channels it sees.

        Args:
            labels: of these channels; where none of them can be removed, nothing is mixed.
        """

    def along(self, tensor: Tensor | None, dim: int) -> Tensor | None:
        """Return the labels along one dimension, or None where its size is fixed.

        A dimension that carries several families (a flattened weight) has all of them made equal.
        """
        found = [family.labels for family in self.of(tensor) if family.dim == dim]
        for other in found[1:]:
            self.meet(found[0], other)
        return found[0] if found else None

    def overlay(self, places: Iterable[tuple[Tensor, int]], dim: int, reason: str) -> list[Family]:
        """Lay dimensions of several tensors over each other, index by index.

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

    def pin_all(self, tensors: Iterable[Tensor], reason: str) -> None:
        """Pin whatever the tensors carry."""
        for tensor in tensors:
            for family in self.of(tensor):
                self.pin(family.labels, reason)

    def couple_rows(self, labels: Tensor, rows: int) -> Tensor:
        """View labels as [rows, n] and make every row equal to the first, which is returned."""
        if rows == 1:
            return labels
        table = labels.view(rows, -1)
        self.meet(table[1:].reshape(-1), table[:1].expand(rows - 1, -1).reshape(-1))
        return table[0]

    def couple_within_rows(self, labels: Tensor, rows: int) -> Tensor:
        """View labels as [rows, n] and make each row one channel; return its first column."""
        if rows == len(labels):
            return labels
        table = labels.view(rows, -1)
        self.meet(table[:, 1:].reshape(-1), table[:, :1].expand(-1, table.shape[1] - 1).reshape(-1))
        return table[:, 0]


class Rule(abc.ABC):
    """What one family of ATen ops does to labels.

    `keys` are op overloads, op packets (`torch.ops.aten.cat` stands for all of its overloads), or
    a `torch.Tag`, which stands for every op that carries it and has no key of its own. An op of
    another library is named, as in `"torchvision::deform_conv2d"`.
    """

    keys: ClassVar[tuple[Hashable, ...]]

    @abc.abstractmethod
    def __call__(self, context: Context, call: Call) -> None:
        """Say what `call` does. Its arguments may carry no labels."""


Tie = tuple[tuple[Tensor, int], tuple[Tensor, int] | None]
"""Two dimensions of parameters that are one; without a second, the first one's channels stay."""


class ModuleTies(abc.ABC):
    """Says which dimensions of a module's parameters have the same channels by what the module is.

    The calls of an example may not show it. `keys` are classes; subclasses count too.
    """

    keys: ClassVar[tuple[Hashable, ...]]

    @abc.abstractmethod
    def __call__(self, module: Any) -> Iterable[Tie]:
        """Yield pairs of (parameter, dimension); the first may hold the channels several times."""


def goes_whole(channels: Tensor, groups: int) -> bool:
    """Choose how a layer of several groups loses channels: whole groups, or a part of each.

    It loses whole groups if that leaves more choices: 32 groups of 2 channels are 32 groups to
    remove, but only 2 channels if each group loses the same part. Channels that are coupled already
    stay coupled that way.

    Args:
        channels: the labels of the layer's channels, int64 [C].
        groups: the number of groups.
    """
    table = channels.view(groups, -1)
    if bool((table == table[:, :1]).all()):
        return True
    if bool((table == table[:1]).all()):
        return False
    return groups >= table.shape[1]
