"""A small network whose subclasses say, in code that is kept, how it is called."""

from torch import Tensor, nn


class Plain(nn.Module):
    """Three convolutions, of which the first two have channels that can go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.c = nn.Conv2d(24, 4, 1)

    def wide(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()).relu()
