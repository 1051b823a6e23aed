"""The mean is small: rounding alone shows, and is no fault."""

from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 1)
        self.conv5 = nn.Conv2d(6, 6, 1)
        self.conv7 = nn.Conv2d(6, 6, 1)
        self.conv9 = nn.Conv2d(6, 6, 1)
        self.conv11 = nn.Conv2d(6, 6, 1)
        self.conv13 = nn.Conv2d(6, 6, 1)
        self.norm15 = nn.Identity()
        self.conv19 = nn.Conv2d(6, 3, 1, bias=False)

    def forward(self, x):
        x2 = self.conv1(x)
        x4 = self.conv3(x2)
        x6 = self.conv5(x4)
        x8 = self.conv7(x6)
        x10 = self.conv9(x8)
        x12 = self.conv11(x10)
        x14 = self.conv13(x12)
        t16 = x14.flatten(2)
        t17 = F.group_norm(t16, 6)
        x18 = F.silu(t17, inplace=True).unflatten(2, x14.shape[2:])
        x20 = self.conv19(x18)
        return x20.mean((2, 3))
