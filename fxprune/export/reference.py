"""What an exported network is checked against."""

import copy

import torch
from torch import nn

from fxprune.gated.module import GatedModule


def zeroed(gated: GatedModule, model: nn.Module) -> nn.Module:
    """The dense network that the compact one has to equal: removed channels count for nothing.

    Where norms take statistics over several channels (`gated.channels.mixing`) there is none.

    Args:
        gated: the network, with the selection that export takes.
        model: the one that it was made of, with any values.

    Returns:
        A copy of `model` with the tensors of `gated`, in which the removed channels' columns are
        zero in each weight that consumes them.

    >>> import torch
    >>> from fxprune import instrument, shrink
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> x = torch.randn(2, 3, 8, 8)
    >>> gated = instrument(model, (x,)).eval()
    >>> torch.allclose(zeroed(gated, model)(x), shrink(gated)(x), atol=1e-5)
    True
    """
    twin, best, layout = copy.deepcopy(model), gated.best(), gated.channels.layout
    tensors = gated.dense_tensors()
    gone = torch.ones(layout.total, dtype=torch.bool)
    gone[best.channels.cpu()] = False
    for group, offset in zip(gated.channels.groups, layout.offsets, strict=True):
        for member in group.consumers:
            columns = member.positions[gone[offset : offset + group.size]].flatten()
            whole = tensors[member.parameter].detach()
            columns = columns.to(whole.device)
            tensors[member.parameter] = whole.index_fill(member.dim, columns, 0.0)
    twin.load_state_dict(gated.origin.state_dict(tensors))
    return twin.train(gated.training)


def reference_of(gated: GatedModule, dense: nn.Module) -> nn.Module:
    """What an exported network is checked against: the user's own module, where it can be.

    That is the dense network with the removed channels' columns at zero. Where norms mix
    statistics across channels it is another function, and `gated` is the reference.
    """
    return gated if gated.channels.mixing else zeroed(gated, dense)
