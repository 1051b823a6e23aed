"""Checkpointed parts: the nodes that the user's code ran inside `torch.utils.checkpoint`.

Tracing sees through `checkpoint(block, x)`, whose nodes stand in the graph like any others. Each
has the number of its part in `node.meta`, so that training can recompute the part in backward,
as the user's own network does, instead of keeping its activations.
"""

from collections.abc import Iterator
from types import FrameType

import torch.utils.checkpoint
from torch import fx

PART = "fxprune_checkpoint"


class Checkpoints:
    """Numbers the calls of `torch.utils.checkpoint.checkpoint` during a trace."""

    def __init__(self) -> None:
        """Begin before the first call."""
        self._call: FrameType | None = None
        self._number = -1

    def mark(self, node: fx.Node, frame: FrameType | None) -> None:
        """Note the part of a new node.

        Args:
            node: the node.
            frame: where it is made; the outermost checkpoint that called this counts.
        """
        call = None
        while frame is not None:
            code = frame.f_code
            if code.co_name == "checkpoint" and code.co_filename == torch.utils.checkpoint.__file__:
                call = frame
            frame = frame.f_back
        if call is None:
            return
        if call is not self._call:
            self._call, self._number = call, self._number + 1
        node.meta[PART] = self._number


def copy_checkpoints(source: fx.Graph, target: fx.Graph) -> None:
    """Give the nodes of a graph the parts of another with the same nodes."""
    for one, other in zip(source.nodes, target.nodes, strict=True):
        if PART in one.meta:
            other.meta[PART] = one.meta[PART]


def checkpointed_parts(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    """Return the nodes of each part, from first to last, what a pass put between included."""
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    ends: dict[int, list[int]] = {}
    for at, node in enumerate(nodes):
        if PART in node.meta:
            ends.setdefault(node.meta[PART], []).append(at)
    last = -1
    for found in sorted(ends.values()):
        if found[0] > last:  # parts that overlap were moved by a pass; the first one holds
            last = found[-1]
            yield nodes[found[0] : last + 1]
