"""A channel stands at two positions behind the shuffle, and one has them the other way round behind
the choice by numbers; it was taken for the others' like.
"""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv5 = nn.Conv2d(6, 6, 1)
        self.fc8 = nn.Linear(6, 3)
        self.fc9 = nn.Linear(6, 3)

    def forward(self, x):
        x2 = self.conv1(x)
        t3 = x2.size(0)
        x4 = x2.view(t3, 2, 3, 8, 8).transpose(1, 2).contiguous().view(t3, 6, 8, 8)
        x6 = self.conv5(x4)
        x7 = x4[:, [5, 0, 1, 2, 3, 4]]
        return self.fc8(x6.mean((2, 3))) + self.fc9(x7.mean((2, 3)))
