"""The public `follow`: averages (EMA, SWA) of a gated network's parameters follow its channels.

A plain average of compact tensors would mix channels, since after the next selection a slot holds
another channel. So a copy that holds an average follows the network: whenever the network
exchanges channels, the copy exchanges the same ones with a bank of its own, and each of its slots
holds the average of the channel that executes there. The average of a channel does not change while
the channel rests. Calling the copy executes the selection of export, as in `eval()`.
"""

from fxprune.gated.averages import no_average
from fxprune.gated.module import GatedModule


def follow(average: GatedModule, gated: GatedModule) -> None:
    """Let a copy that holds an average of a gated network's parameters follow its selections.

    `AveragedModel` of torch.optim.swa_utils, and timm's `ModelEmaV3(exclude_buffers=True)`, are
    recognised and need no call. Call it for an average of your own, right after
    `copy.deepcopy(gated)`.

    Args:
        average: a copy of `gated`, with its parameters and buffers in the same order.
        gated: the network that trains.

    Raises:
        GateError: one of the two is no gated network, or they are not of the same model.

    >>> import copy, torch, fxprune
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> gated = fxprune.instrument(model, (torch.zeros(1, 3, 8, 8),))
    >>> average = copy.deepcopy(gated)
    >>> fxprune.follow(average, gated)
    """
    if not isinstance(average, GatedModule):
        raise no_average(average)
    average.follow(gated)
