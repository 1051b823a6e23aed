"""Examples of `fxprune.rules.matmul`."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.matmul import Bilinear, Linear, MatMul, MatrixVector
from tests.support.rule_examples.base import Example, one, run, tokens


def attention(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
    """Positions attend to each other; [N, C, L]."""
    x = tokens(x)
    weights = torch.softmax(q(x) @ k(x).transpose(1, 2), dim=2)
    return torch.bmm(weights, v(x)).transpose(1, 2)


def baddbmm(x: Tensor, layer: nn.Module) -> Tensor:
    """A linear layer over the channels, by another name."""
    weight = layer.weight.t().expand(x.shape[0], -1, -1)
    return torch.baddbmm(layer.bias, tokens(x), weight).transpose(1, 2)


EXAMPLES: tuple[Example, ...] = (
    Example(
        Bilinear,
        "of each position",
        lambda x, layer: layer(tokens(x), tokens(x).cos()).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Bilinear, 8, 8, 6),
    ),
    Example(
        Linear,
        "over the channels",
        lambda x, layer: layer(tokens(x)).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Linear, 8, 6),
    ),
    Example(
        Linear,
        "over positions",
        lambda x, layer: layer(x.flatten(2)),
        8,
        (8, 7, 4),
        ("the matrix product sums over a dimension of fixed size",),
        layers=one(nn.Linear, 36, 7),
        mixes=True,  # the mean over what the layer makes
    ),
    Example(
        MatMul,
        "attention",
        attention,
        6,
        (8, 7, 6, 4),
        layers=lambda: (nn.Linear(8, 7), nn.Linear(8, 7), nn.Linear(8, 6)),
        mixes=True,
    ),
    Example(
        MatMul,
        "linear as a function",
        lambda x, layer: F.linear(tokens(x), layer.weight, layer.bias).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Linear, 8, 6),
    ),
    Example(MatMul, "baddbmm", baddbmm, 6, (8, 6, 4), layers=one(nn.Linear, 8, 6)),
    Example(
        MatMul,
        "by a raw matrix",
        lambda x, layer: (tokens(x) @ layer.weight).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Linear, 6, 8, bias=False),
    ),
    Example(
        MatrixVector,
        "spectral norm",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)),),
    ),
    Example(
        MatrixVector,
        "a filter as a vector",
        lambda x, w: x * torch.mv(x.mean((2, 3)), w.weight.view(-1)).sigmoid()[:, None, None, None],
        layers=one(nn.Linear, 8, 1, bias=False),
    ),
    Example(
        Linear,
        "of a recurrent layer",
        lambda x, layer: layer(tokens(x))[0].transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.GRU, 8, 6, batch_first=True),
    ),
    Example(
        Linear,
        "of recurrent layers that go both ways",
        lambda x, layer: layer(tokens(x))[0].transpose(1, 2),
        12,
        (8, 6, 4),
        layers=one(nn.LSTM, 8, 6, num_layers=2, batch_first=True, bidirectional=True),
    ),
    Example(
        Linear,
        "of a recurrent layer with a state of its own",
        lambda x, layer: layer(tokens(x), torch.zeros(1, x.shape[0], 6).to(x))[0].transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.RNN, 8, 6, batch_first=True),
    ),
    *(
        Example(
            Linear,
            f"of a {kind.__name__} that reads one token",
            lambda x, layer: layer(x.mean((2, 3)).unsqueeze(1))[0].transpose(1, 2),
            6,
            (8, 6, 4),
            layers=one(kind, 8, 6, batch_first=True),
        )
        for kind in (nn.RNN, nn.GRU, nn.LSTM)
    ),
    Example(
        Linear,
        "of a recurrent layer with a projection",
        lambda x, layer: layer(tokens(x))[0].transpose(1, 2),
        3,
        (8, 4),
        ("the code here does not follow narrow widths",),
        layers=one(nn.LSTM, 8, 6, batch_first=True, proj_size=3),
    ),
)
