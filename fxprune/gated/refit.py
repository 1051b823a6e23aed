"""Repair of a trained network at the moment when channels are removed, before it trains on.

Each convolution and linear layer of the compact network, in the order in which they run, gets the
weights with which it comes closest to what the same layer of the dense network gives:

    min over W  of  |W u - y|^2 + ridge * |W - W_kept|^2

u are the patches of the layer's input in the compact network, whose earlier layers are solved for
already; y is the dense layer's output at the kept channels. So what a removed channel contributed
is put into the kept ones as far as those can express it (He, Zhang and Sun, arXiv 1707.06168,
equation 3). Norms keep the dense network's statistics, which fit again once the layers before them
give about what the dense ones gave; measuring them anew now costs accuracy (docs/results.md).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxprune.errors import GateError
from fxprune.gated.module import GatedModule
from fxprune.tracing.module import evaluating

CHUNK = 32
"""Images that are passed through at a time."""


@torch.no_grad()
def refit(
    gated: GatedModule,
    compact: fx.GraphModule,
    model: nn.Module,
    images: Tensor,
    *,
    places: int = 24,
    ridge: float = 1e-3,
) -> tuple[str, ...]:
    """Solve for the weights that bring each layer closest to the dense network's, in place.

    Layers that run more than once, convolutions in groups and layers without a weight of their
    own stay as they are.

    Args:
        gated: a settled network, whose parameters are written.
        compact: what `fxprune.shrink` makes of it; its weights are written too.
        model: the trained network that it was made of; both stay in their modes.
        images: float32 [B, C, H, W], prepared as the network takes them; some hundred.
        places: output positions that are taken of each image.
        ridge: weight of the distance to the weights as they are, as a share of the mean square of
            the inputs.

    Returns:
        The names of the layers that were solved for.

    Raises:
        GateError: the network is not settled.
    """
    if not gated.settled:
        raise GateError(
            "a network that still chooses cannot be refitted",
            why="its weights are solved for one selection, and the next step may select another",
            do="call gated.settle() before",
        )
    kept, mended = gated.selection(), []
    parameters = dict(gated.named_parameters())
    before, now = dict(model.named_modules()), dict(compact.named_modules())
    with evaluating(model, compact):
        for name in _layers(compact, model, images[:2]):
            weight = f"{name}.weight"
            rows = kept.get(weight, {}).get(0)
            layer = now[name]
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            _solve(layer, _pairs(compact, layer, model, before[name], rows, images, places), ridge)
            parameters[weight].copy_(layer.weight)
            mended.append(name)
    return tuple(mended)


def _layers(compact: nn.Module, model: nn.Module, images: Tensor) -> list[str]:
    """Return the names of the layers that can be solved for, in the order in which they run."""
    others = dict(model.named_modules())
    calls: list[str] = []
    handles = []
    layers: Iterator[tuple[str, nn.Module]] = compact.named_modules()
    for name, layer in layers:
        whole = isinstance(layer, nn.Linear) or (
            isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros"
        )
        plain = whole and isinstance(layer._parameters.get("weight"), nn.Parameter)
        if plain and type(others.get(name)) is type(layer):
            handles.append(layer.register_forward_hook(_noting(calls, name)))
    compact(images)
    for handle in handles:
        handle.remove()
    return [name for name in calls if calls.count(name) == 1]


def _noting(calls: list[str], name: str) -> Callable[..., None]:
    """Return a forward hook that notes the layer's name."""
    return lambda *_: calls.append(name)


class _ReachedError(Exception):
    """Ends a forward at the layer whose input and output are wanted."""


def _at(network: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a network up to a layer, and return that layer's input and output."""
    found: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend((inputs[0], output))
        raise _ReachedError

    handle = layer.register_forward_hook(stop)
    try:
        network(images)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return found[0], found[1]


def _pairs(
    compact: nn.Module,
    layer: nn.Module,
    model: nn.Module,
    dense_layer: nn.Module,
    rows: Tensor | None,
    images: Tensor,
    places: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs [n, features] and wanted outputs [n, channels], float64, in chunks."""
    generator = torch.Generator().manual_seed(0)
    for chunk in torch.split(images, CHUNK):
        inputs, _ = _at(compact, layer, chunk)
        _, wanted = _at(model, dense_layer, chunk)
        if isinstance(layer, nn.Linear):
            x, y = inputs.flatten(0, -2), wanted.flatten(0, -2)
        else:
            assert isinstance(layer, nn.Conv2d)
            x, y = _patches(layer, inputs, wanted, places, generator)
        if rows is not None:
            y = y.index_select(1, rows.to(y.device))
        yield x.double(), y.double()


def _patches(
    layer: nn.Conv2d, inputs: Tensor, outputs: Tensor, places: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the inputs [n, features] and outputs [n, channels] of random output positions."""
    count, channels, height, width = outputs.shape
    reach = [(size - 1) * step for size, step in zip(layer.kernel_size, layer.dilation)]
    padding = layer.padding
    if padding == "same":
        before = [far // 2 for far in reach]
        after = [far - near for far, near in zip(reach, before, strict=True)]
    else:
        before = after = [0, 0] if isinstance(padding, str) else list(padding)
    inputs = functional.pad(inputs, (before[1], after[1], before[0], after[0]))
    at = torch.randint(height * width, (count, places), generator=generator, device="cpu").to(
        outputs.device
    )
    top, left = at // width * layer.stride[0], at % width * layer.stride[1]
    down = torch.arange(layer.kernel_size[0], device=at.device) * layer.dilation[0]
    right = torch.arange(layer.kernel_size[1], device=at.device) * layer.dilation[1]
    image = torch.arange(count, device=at.device)[:, None, None, None]
    # [images, places, kernel height, kernel width, channels]
    x = inputs.permute(0, 2, 3, 1)[
        image,
        (top[:, :, None] + down)[:, :, :, None],
        (left[:, :, None] + right)[:, :, None, :],
    ]
    x = x.permute(0, 1, 4, 2, 3).flatten(2).flatten(0, 1)
    y = outputs.flatten(2).transpose(1, 2)[image[:, :, 0, 0], at].flatten(0, 1)
    return x, y.view(-1, channels)


def _solve(
    layer: nn.Conv2d | nn.Linear, pairs: Iterator[tuple[Tensor, Tensor]], ridge: float
) -> None:
    """Solve the normal equations and write the layer's weight."""
    old = layer.weight.flatten(1).double()
    gram = old.new_zeros(old.shape[1], old.shape[1])
    cross = torch.zeros_like(old)
    for x, y in pairs:
        y = y if layer.bias is None else y - layer.bias.double()
        gram += x.T @ x
        cross += y.T @ x
    weight = ridge * gram.diagonal().mean().clamp_min(1e-12)
    gram += weight * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    solved = torch.linalg.solve(gram, (cross + weight * old).T).T
    if solved.isfinite().all():
        layer.weight.copy_(solved.reshape(layer.weight.shape))
