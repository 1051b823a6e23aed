"""A small gated network and the data that the tests of training frameworks share."""

from typing import Any

import torch
from torch import nn

from fxprune import GatedModule, attach, instrument

IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (64,), generator=torch.Generator().manual_seed(1))


def network(policy: str = "random") -> GatedModule:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return instrument(model.train(), (IMAGES[:2],), policy=policy, budget="keep=0.5")


def loader() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), 16)


def attached_classifier(**options: Any) -> Any:
    """Make skorch's classifier on `network`, which attaches where it makes its optimiser."""
    from skorch import NeuralNetClassifier

    class Attached(NeuralNetClassifier):  # type: ignore[misc]
        def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            done = super().initialize_optimizer(*args, **kwargs)
            attach(self.module_, self.optimizer_)
            return done

    return Attached(
        network, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=0.05,
        max_epochs=2, batch_size=16, train_split=None, verbose=0, **options,
    )  # fmt: skip
