"""The trial at narrow widths coupled the second grouped convolution in another way than the dense
run had, refused that, and did so again for ever with every channel pinned.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 9, 3, padding=1)
        self.conv3 = nn.Conv2d(3, 2, 3, padding=1, bias=False)
        self.norm5 = nn.BatchNorm2d(2)
        self.conv7 = nn.Conv2d(2, 2, 3, padding=1, groups=2)
        self.conv9 = nn.Conv2d(2, 6, 1)
        self.conv11 = nn.Conv2d(3, 6, 1)
        self.conv19 = nn.Conv2d(6, 6, 1, bias=False, groups=2)
        self.conv33 = nn.Conv2d(3, 6, 1)
        self.conv36 = nn.Conv2d(6, 6, 1, groups=2)

    def forward(self, x):
        x4 = self.conv3(x)
        x8 = self.conv7(x4)
        x10 = self.conv9(x8)
        x20 = self.conv19(x10)
        x21 = (
            x10.reshape(x10.shape[0], 3, -1, x10.shape[2], x10.shape[3])
            .transpose(1, 2)
            .flatten(1, 2)
        )
        x22 = F.pad(x20, (0, 0, 0, 0, 0, 1), value=0.5)
        t24 = x22.tensor_split(2, 1)
        x25 = t24[0]
        x26 = t24[1]
        x28 = F.adaptive_avg_pool2d(x21, 1)
        x32 = F.adaptive_avg_pool2d(x26, 1)
        x34 = self.conv33(x32)
        x35 = torch.add(x28, x34)
        x37 = self.conv36(x35)
        return x25, x37
