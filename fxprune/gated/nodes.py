"""The gated nodes: narrow modules whose channels are exchanged between steps.

There are no masks, and nothing is gathered in forward. A gated node runs as the plain narrow
module it derives from; the class tells a reader, and the printed network, what it is.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import GateError
from fxprune.tracing.module import own_name

TAP = "fxprune_tap_"
"""Taps are children of the gated network; their names are this and the number of the gate."""


class Gated:
    """Marks a module whose channels are exchanged between steps.

    Attributes:
        dense_shape: of its weight.
        paths: its names in the gated network.
    """

    dense_shape: tuple[int, ...] = ()
    paths: tuple[str, ...] = ()

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        """Load as a part of the whole network, which knows of which channels the values are.

        Raises:
            GateError: the state is loaded into a part of the network alone.
        """
        if not any(own_name(f".{prefix}").endswith(f".{path}.") for path in self.paths):
            raise GateError(
                f"the part {self.paths[0]!r} of a gated network cannot load a state by itself",
                why="its slots may be of other channels by now than when the state was saved",
                do="save and load gated.state_dict(), the whole network's",
            )
        local_metadata["assign_to_params_buffers"] = False  # parameters stay the same objects
        load: Any = super()._load_from_state_dict  # type: ignore[misc]
        load(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        """Return the narrow module's own line, and the dense shape of its weight."""
        own: str = super().extra_repr()  # type: ignore[misc]
        return f"{own}, dense_weight={self.dense_shape}"


class GatedConv1d(Gated, nn.Conv1d):
    """A narrow Conv1d with resident parameters."""


class GatedConv2d(Gated, nn.Conv2d):
    """A narrow Conv2d with resident parameters."""


class GatedConv3d(Gated, nn.Conv3d):
    """A narrow Conv3d with resident parameters."""


class GatedConvTranspose1d(Gated, nn.ConvTranspose1d):
    """A narrow ConvTranspose1d with resident parameters."""


class GatedConvTranspose2d(Gated, nn.ConvTranspose2d):
    """A narrow ConvTranspose2d with resident parameters."""


class GatedConvTranspose3d(Gated, nn.ConvTranspose3d):
    """A narrow ConvTranspose3d with resident parameters."""


class GatedBatchNorm1d(Gated, nn.BatchNorm1d):
    """A narrow BatchNorm1d with resident parameters and statistics."""


class GatedBatchNorm2d(Gated, nn.BatchNorm2d):
    """A narrow BatchNorm2d with resident parameters and statistics."""


class GatedBatchNorm3d(Gated, nn.BatchNorm3d):
    """A narrow BatchNorm3d with resident parameters and statistics."""


class GatedLinear(Gated, nn.Linear):
    """A narrow Linear with resident parameters."""


# A module of another class (a user's own, a norm without statistics …) keeps its class: it needs
# no name of its own to run with narrow parameters.
_GATED: dict[type[nn.Module], type[nn.Module]] = {
    gated.__mro__[2]: gated
    for gated in (
        GatedConv1d,
        GatedConv2d,
        GatedConv3d,
        GatedConvTranspose1d,
        GatedConvTranspose2d,
        GatedConvTranspose3d,
        GatedBatchNorm1d,
        GatedBatchNorm2d,
        GatedBatchNorm3d,
        GatedLinear,
    )
}
_PLAIN = {gated: plain for plain, gated in _GATED.items()}


class Tap(nn.Module):
    """Reads the per-sample saliency at a gate point; the identity otherwise.

    What it reads is the gradient of a probe, a leaf that takes no part in the output: it adds up
    over backwards as gradients do, once for each forward that is run twice (checkpointing), and
    torch.compile needs to know nothing of it.

    Attributes:
        dim: the channel dimension of the activation.
        probe: float32 [channels]; its gradient is the mean over samples of |sum of g * a|, summed
            since it was last taken.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.probe = torch.zeros(0, requires_grad=True, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        """Return a copy of x, so that what follows may work in place."""
        if not (self.training and torch.is_grad_enabled()):
            return x
        out: Tensor = _Tapped.apply(x, self.probe, self.dim)
        return out

    def fit(self, channels: int, device: torch.device) -> None:
        """Make the probe anew if the number of channels, or the device, is another."""
        if self.probe.shape != (channels,) or self.probe.device != device:
            self.probe = torch.zeros(channels, device=device, requires_grad=True)

    def take(self) -> Tensor | None:
        """Return what was measured, and reset it."""
        seen, self.probe.grad = self.probe.grad, None
        return seen


class _Tapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probe: Tensor, dim: int) -> Tensor:
        del probe
        ctx.save_for_backward(x)
        ctx.dim = dim
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (x,) = ctx.saved_tensors
        rest = [dim for dim in range(1, x.dim()) if dim != ctx.dim]
        product = grads[0].float() * x.float()
        per_sample = product.sum(rest) if rest else product
        return grads[0], per_sample.abs().mean(0), None


def taps(network: nn.Module) -> dict[int, Tap]:
    """Return the taps of a gated network by the number of their gate."""
    found = ((name, child) for name, child in network.named_children() if isinstance(child, Tap))
    return {int(name.removeprefix(TAP)): tap for name, tap in found}


def read_taps(network: nn.Module) -> dict[int, Tensor]:
    """Return and reset what the taps have measured, by the number of the gate; see `Tap.probe`."""
    taken = ((number, tap.take()) for number, tap in taps(network).items())
    return {number: values for number, values in taken if values is not None}


def to_gated(module: nn.Module, dense_shape: tuple[int, ...]) -> None:
    """Turn a plain module into the gated one that derives from it, in place, if there is one."""
    gated = _GATED.get(type(module))
    if gated is not None:
        # nothing else differs, and the module's own attributes and hooks stay
        module.__class__ = gated
        module.dense_shape = dense_shape  # type: ignore[assignment]


def is_gated(module: nn.Module) -> bool:
    """Tell whether a module is one of these, which run the code of PyTorch's."""
    return type(module) in _PLAIN


def note_paths(network: nn.Module) -> None:
    """Write into each gated module the names that it has in the network."""
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, Gated):
            module.paths = (*module.paths, path)


def to_plain(module: nn.Module) -> None:
    """Turn gated modules into the plain ones they derive from, in place."""
    for child in module.modules():
        plain = _PLAIN.get(type(child))
        if plain is not None:
            del child.dense_shape, child.paths
            child.__class__ = plain


def untapped(graph: fx.Graph) -> fx.Graph:
    """Copy a graph without its taps."""
    clone = copy.deepcopy(graph)
    for node in list(clone.nodes):
        if node.op == "call_module" and str(node.target).startswith(TAP):
            node.replace_all_uses_with(node.args[0])
            clone.erase_node(node)
    return clone
