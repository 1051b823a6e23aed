"""Widths by trial: of some candidates the one that is best with its norms measured anew.

Li, Wu, Su and Wang, "EagleEye", arXiv 2007.02491: the accuracy of a pruned network whose batch
norms were measured anew predicts, of several allocations, which will be best after fine-tuning.
Candidates lie between uniform widths and those of the policy's scores, with noise; within a group
the scores choose. Only forward passes are spent.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn

import fxprune
from fxprune.bank.exchange import Selection
from fxprune.budget.widths import uniform_widths
from fxprune.channels.graph import Widths


@dataclass(frozen=True)
class Probe:
    """What candidates are tried on.

    Attributes:
        measured: images on which norms are measured, float32 [B, C, H, W] each.
        images: those that are answered, float32 [B, C, H, W].
        labels: their labels, int64 [B].
    """

    measured: Sequence[Tensor]
    images: Tensor
    labels: Tensor

    @property
    def forwards(self) -> int:
        """Images that pass through a candidate."""
        return sum(map(len, self.measured)) + len(self.images)


def best_of(network: fxprune.GatedModule, probe: Probe, count: int, seed: int) -> Selection:
    """Try some allocations and return the best selection; the network's own is among them.

    Args:
        network: gated, with a policy that has seen gradients.
        probe: what they are tried on.
        count: how many.
        seed: of the noise.
    """
    first = network.best()
    layout, draw = network.channels.layout, random.Random(seed)
    even = uniform_widths(network.settings.budget, layout, network.cost)
    scores = network.settings.policy.score(network.policy_state, layout, explore=False)
    best, right = first, -1.0
    for number in range(count):
        widths = first.widths if number == 0 else _between(network, first.widths, even, draw)
        chosen = first if number == 0 else top(scores, layout.sizes, widths)
        network.settle(chosen)
        found = count_right(network, probe)
        network.unsettle()
        if found > right:
            best, right = chosen, found
    return best


def top(scores: Tensor, sizes: Widths, widths: Widths) -> Selection:
    """The channels of the highest scores [N] in each group, in rising order."""
    parts, begin = [], 0
    for size, width in zip(sizes, widths, strict=True):
        own = scores[begin : begin + size]
        parts.append(begin + own.topk(width).indices.sort().values)
        begin += size
    return Selection(torch.cat(parts), widths)


def _between(
    network: fxprune.GatedModule, scored: Widths, even: Widths, draw: random.Random
) -> Widths:
    """Widths of a random mix, scaled to what the budget allows."""
    sizes, budget, cost = network.channels.layout.sizes, network.settings.budget, network.cost
    mix = draw.random()
    shares = [
        (mix * one + (1 - mix) * other) / size * draw.uniform(0.8, 1.25)
        for one, other, size in zip(scored, even, sizes, strict=True)
    ]

    def at(scale: float) -> Widths:
        pairs = zip(shares, sizes, strict=True)
        return tuple(min(max(round(scale * share * size), 1), size) for share, size in pairs)

    low, high = 0.0, 4.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if budget.fits(at(middle), cost) else (low, middle)
    return at(low)


@torch.no_grad()
def count_right(network: fxprune.GatedModule, probe: Probe) -> float:
    compact = fxprune.shrink(network)
    update_bn(iter(probe.measured), compact)
    compact.eval()
    return float((compact(probe.images).argmax(1) == probe.labels).float().mean())
