"""The network that an exported file is checked against."""

import torch
from torch import nn

from fxprune.errors import GateError, described
from fxprune.gated.module import GatedModule
from fxprune.tracing.deepcopy import copied
from fxprune.tracing.module import modules_of, require_module


def zeroed(gated: GatedModule, model: nn.Module) -> nn.Module:
    """Make the dense network that the compact one has to equal, with removed channels at zero.

    Where removing a channel changes the others (`gated.channels.mixing`) there is none, and
    `gated` itself says what to equal; see `reference_of`.

    Args:
        gated: the network, with the selection that export takes.
        model: the one that it was made of, with any values.

    Returns:
        A copy of `model` with the tensors of `gated`, in which the removed channels' columns are
        zero in each weight that consumes them.

    Raises:
        GateError: there is no such network, since the model mixes channels; or `gated` is no gated
            network, or was made of another model.
        TraceError: `model` is no nn.Module.

    >>> import torch
    >>> from fxprune import instrument, shrink
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> x = torch.randn(2, 3, 8, 8)
    >>> gated = instrument(model, (x,)).eval()
    >>> torch.allclose(zeroed(gated, model)(x), shrink(gated)(x), atol=1e-5)
    True
    """
    _require_kinds(gated, model)
    if gated.channels.mixing:
        node, _, line = gated.channels.mixing[0].partition("   ")
        raise GateError(
            "the dense network with zero columns is another function than the compact one",
            at=line or f"node {node}",
            why="here a removed channel is not the same as zeros: statistics are taken over the "
            "channels, or a weight is computed in a way that turns zeros into other numbers",
            do="compare with `gated` itself; fxprune.reference_of(gated, model) does so by itself",
        )
    clone: nn.Module = copied(model, {})
    best, layout = gated.best(), gated.channels.layout
    tensors = gated.dense_tensors()
    gone = torch.ones(layout.total, dtype=torch.bool, device="cpu")
    gone[best.channels.cpu()] = False
    for group, offset in zip(gated.channels.groups, layout.offsets, strict=True):
        for member in group.consumers:
            columns = member.positions[gone[offset : offset + group.size]].flatten()
            whole = tensors[member.parameter].detach()
            columns = columns.to(whole.device)
            tensors[member.parameter] = whole.index_fill(member.dim, columns, 0.0)
    try:
        clone.load_state_dict(gated.origin.state_dict(tensors))
    except RuntimeError as error:
        raise GateError(
            "the model is another one than the gated network was made of",
            why=" ".join(line.strip() for line in str(error).splitlines()[1:2]),
            do="give the model that fxprune.instrument was given",
        ) from error
    modes = {path: module.training for path, module in modules_of(gated).items()}
    for path, module in modules_of(clone).items():
        module.training = modes.get(path, gated.training)
    return clone


def reference_of(gated: GatedModule, dense: nn.Module) -> nn.Module:
    """Return the network that an exported one is checked against: the user's own, if possible.

    That is `zeroed(gated, dense)`, the dense network with the removed channels' columns at zero.
    Where the network mixes channels (`gated.channels.mixing`) it is another function, and `gated`
    itself is the reference.

    Args:
        gated: the network, with the selection that export takes.
        dense: the model that it was made of, with any values.

    Raises:
        GateError: `gated` is no gated network.
        TraceError: `dense` is no nn.Module.
    """
    _require_kinds(gated, dense)
    return gated if gated.channels.mixing else zeroed(gated, dense)


def _require_kinds(gated: nn.Module, model: nn.Module) -> None:
    if not isinstance(gated, GatedModule):
        raise GateError(
            f"{described(gated)} has no removed channels",
            why="only a gated network has a selection",
            do="give what fxprune.instrument returned, and the model that it was made of",
        )
    require_module(model)
