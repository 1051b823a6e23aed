"""The weight norm of a transposed convolution runs over the channels that it makes.

Removing such a channel changes the norm, but its slice was not zeroed in the reference.
"""

from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(6, 5, 3, padding=1))
        self.fc3 = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc3(self.conv2(self.conv1(x)).mean((2, 3)))
