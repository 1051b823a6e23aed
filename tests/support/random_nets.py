"""Random networks: descriptions that hypothesis draws and shrinks, and the source they stand for.

A network is a list of steps, and every list is valid: a step names its operands by how far back
they lie and carries a few numbers that choose among what fits there (how many channels, which
kernel, which way to write it); what does not fit is left out. So any part of a list is a network
again, and shrinking is removing steps and making numbers small.

A description is turned into Python source, and the source is what runs: a failure prints exactly
what failed.
"""

import linecache
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.steps import FREQUENT, KINDS
from tests.support.steps.writer import SIDE, Dice, Writer
from tests.support.topologies.base import randomised

LONGEST = 12
"""Steps of a network."""
NUMBERS = 5
"""Numbers of a step."""
FILE = "random_net.py"
"""What a traceback calls the source."""


@dataclass(frozen=True)
class Step:
    """One operation: its kind, its operands by how far back they lie, and numbers to choose by."""

    kind: str
    at: int = 0
    other: int = 0
    dice: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class RandomNet:
    """A network: a convolution with `stem` channels, the steps, and how its outputs are made."""

    steps: tuple[Step, ...]
    stem: int = 6
    head: int = 0

    @cached_property
    def source(self) -> str:
        """Python source that defines the class `Net`."""
        writer = Writer()
        writer.conv(writer.back(0), self.stem, 3)
        for step in self.steps:
            operands = writer.back(step.at), writer.back(step.other)
            KINDS[step.kind](writer, *operands, Dice(step.dice))
        return writer.finish(self.head)

    def __repr__(self) -> str:
        return f"the network\n{self.source}"


def model_of(source: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Builds the `Net` of a source in evaluation mode, with weights that hide nothing."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(True), FILE)
    names: dict[str, Any] = {}
    exec(compile(source, FILE, "exec"), names)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return randomised(names["Net"]()).to(dtype).eval()


def inputs(batch: int = 2, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Normal inputs, always the same."""
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(batch, 3, SIDE, SIDE, generator=generator, dtype=dtype),)


steps = st.builds(
    Step,
    kind=st.sampled_from(FREQUENT),
    at=st.sampled_from((0, 0, 0, 0, 1, 2, 3)),
    other=st.sampled_from((1, 2, 3, 4, 5, 0)),
    dice=st.tuples(*[st.integers(0, 11)] * NUMBERS),
)
nets = st.builds(
    RandomNet,
    steps=st.lists(steps, min_size=1, max_size=LONGEST).map(tuple),
    stem=st.sampled_from((6, 4, 8, 12, 9)),
    head=st.sampled_from((0, 0, 1, 2, 3)),
)
