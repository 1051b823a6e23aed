"""Channels that go round the end of a roll stand in the rows of the view behind it the other way
round, and were taken for the others' like.
"""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.fc4 = nn.Linear(6, 3)

    def forward(self, x):
        x2 = self.conv1(x).roll(1, 1)
        t3 = x2.size(0)
        x4 = x2.view(t3, 2, 3, 8, 8).transpose(1, 2).contiguous().view(t3, 6, 8, 8)
        return self.fc4(x4.mean((2, 3)))
