"""tensor_split went on cutting in the middle, which fitted by chance at the widths of the trial."""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.fc6 = nn.Linear(192, 3)
        self.fc7 = nn.Linear(192, 3)

    def forward(self, x):
        x2 = self.conv1(x)
        t3 = x2.tensor_split(2, 1)
        x4 = t3[0]
        x5 = t3[1]
        return self.fc6(x4.flatten(1)) + self.fc7(x5.flatten(1))
