"""What mends a network between pruning and training, without labels.

`refit` solves, layer after layer, for the weights with which a layer of the pruned network gives
what the same layer of the dense one gave: min |W u(x) - y|^2 + ridge |W - W_kept|^2, with u(x) the
patches of its input in the pruned network, y the dense layer's output at the kept channels
(He, Zhang and Sun, arXiv 1707.06168, equation 3, with all channels given). Where an input channel
was removed, what it contributed is put into the others as far as these can express it.
`recalibrate` measures the statistics of all batch norms anew.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

Kept = Mapping[str, Mapping[int, Tensor]]


@torch.no_grad()
def refit(
    dense: nn.Module,
    pruned: nn.Module,
    kept: Kept,
    images: Tensor,
    patches: int = 24,
    ridge: float = 1e-3,
) -> float:
    """Solve for the weights of all convolutions and linear layers, in place.

    Args:
        dense: the network before, in evaluation mode.
        pruned: the compact one, with layers of the same names.
        kept: for each parameter of `dense`, the kept indices of its dimensions.
        images: float32 [B, C, H, W].
        patches: places of each image that are taken.
        ridge: weight of the distance to the weights as they are, as a share of the mean square
            of the inputs.

    Returns:
        How often the images passed through the pruned network; once through the dense one.
    """
    dense.eval()
    pruned.eval()
    now = dict(pruned.named_modules())
    layers = {
        name: layer
        for name, layer in dense.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    }
    wanted = _outputs(dense, layers, images)
    generator = torch.Generator().manual_seed(0)
    for name in layers:
        layer = now[name]
        rows = kept.get(f"{name}.weight", {}).get(0)
        outputs = wanted.pop(name)
        if rows is not None:
            outputs = outputs.index_select(1, rows)
        x, y = _pairs(layer, _input(pruned, layer, images), outputs, patches, generator)
        old = layer.weight.flatten(1).double()
        if layer.bias is not None:
            y = y - layer.bias.double()
        gram = x.T @ x
        weight = ridge * gram.diagonal().mean()
        gram += weight * torch.eye(len(gram), dtype=gram.dtype)
        solved = torch.linalg.solve(gram, x.T @ y + weight * old.T).T
        layer.weight.copy_(solved.reshape(layer.weight.shape))
    return len(layers) / 2  # each time up to a layer


@torch.no_grad()
def recalibrate(model: nn.Module, batches: list[Tensor]) -> None:
    """Measure the statistics of all batch norms on some batches [B, C, H, W]."""
    torch.optim.swa_utils.update_bn(iter(batches), model)
    model.eval()


def _outputs(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor
) -> dict[str, Tensor]:
    """What each of some layers puts out, in one pass."""
    found: dict[str, Tensor] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, y, name=name: found.update({name: y}))
        for name, layer in layers.items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


class _ReachedError(Exception):
    """The layer whose input is wanted."""


def _input(model: nn.Module, layer: nn.Module, images: Tensor) -> Tensor:
    """What a layer takes in; what follows it is not computed."""

    def stop(_: nn.Module, x: tuple[Tensor]) -> None:
        raise _ReachedError(x[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        model(images)
    except _ReachedError as reached:
        found: Tensor = reached.args[0]
        return found
    finally:
        handle.remove()
    raise ValueError("the layer is not called")


def _pairs(
    layer: nn.Module, inputs: Tensor, outputs: Tensor, patches: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs [rows, features] and outputs [rows, channels] of some places, float64."""
    if isinstance(layer, nn.Linear):
        return inputs.double(), outputs.double()
    assert isinstance(layer, nn.Conv2d)
    count, _, height, width = outputs.shape
    padding = layer.padding
    assert isinstance(padding, tuple)
    columns = functional.unfold(
        inputs, layer.kernel_size, layer.dilation, padding, layer.stride
    )  # [B, features, places]
    places = torch.randint(height * width, (count, patches), generator=generator)
    x = columns.gather(2, places[:, None, :].expand(-1, columns.shape[1], -1))
    y = outputs.flatten(2).gather(2, places[:, None, :].expand(-1, outputs.shape[1], -1))
    return x.transpose(1, 2).flatten(0, 1).double(), y.transpose(1, 2).flatten(0, 1).double()
