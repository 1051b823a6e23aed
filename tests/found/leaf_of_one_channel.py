"""Of four positions that belonged to one channel the trial at narrow widths saw only one value, so
that it did not notice where the leaf cut them.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        if x.dtype == torch.int8:  # what symbolic tracing does not follow
            raise ValueError(x.shape)
        return self.conv(torch.cat([x[:, 2:], x[:, :2]], 1)).relu()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv1 = nn.Conv2d(4, 8, 1)
        self.layer4 = Opaque()
        self.fc5 = nn.Linear(4, 3)
        self.fc6 = nn.Linear(8, 3)

    def forward(self, x):
        x1 = self.conv1(self.conv0(x))
        x2 = F.glu(x1, dim=1)
        t3 = x1.size(0)
        x3 = x1.view(t3, 4, 2, 8, 8).transpose(1, 2).contiguous().view(t3, 8, 8, 8)
        x4 = self.layer4(x3)
        return self.fc5(x2.mean((2, 3))) + self.fc6(x4.mean((2, 3)))
