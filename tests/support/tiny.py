"""A network in which every pass has something to do, and how its graph is printed."""

import re

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxprune.passes import Program, apply


class Tiny(nn.Module):
    """Halves of one convolution gate each other; sizes stand in the code; training drops."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body, self.norm = nn.Conv2d(6, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.fc = nn.Linear(2 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.bn(self.conv(x)).chunk(2, dim=1)
        x = F.pad(a * b.sigmoid(), (0, 0, 0, 0, 1, 1))
        x = self.norm(self.body(x)).view(-1, 32)
        return self.fc(F.dropout(x, 0.5, training=self.training))


def start() -> Program:
    """The bare model, in evaluation mode."""
    torch.manual_seed(0)
    return Program(Tiny().eval(), (torch.zeros(2, 3, 4, 4),))


def coupled() -> Program:
    """The traced model with its channels."""
    return apply("couple", apply("trace", start()))


def printed(module: fx.GraphModule) -> str:
    """The code that runs in the module's mode, without what fx deletes as it goes."""
    lines = (re.sub(r";  \w+( = \w+)* = None$", "", line) for line in module.code.splitlines())
    return "\n".join(line.strip() for line in lines if line.strip())
