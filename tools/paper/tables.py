"""The tables: which networks are trained by which arms, and the recipes for it.

Recipes: `papers` is that of arXiv 2007.01486 (SGD, learning rate cut by ten three or four times,
200 or 300 epochs); `short` the same data in 30 epochs under a cosine; `small` is for a CPU: small
networks on 10,000 images in 12 epochs, `medium` on all of them; `trial` only shows that all runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import _paths  # noqa: F401 - the tools that all share
import bench_models
import models
from arms import Arm, Dense, Gated, Narrow, Peer
from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How long and on what.

    Attributes:
        images: to train on, the first ones; None for all 50,000.
        options: of `TrainOptions`.
        by_network: what differs for some networks.
    """

    images: int | None
    options: Mapping[str, Any]
    by_network: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def options_of(self, network: str) -> dict[str, Any]:
        """What a network is trained with."""
        return {**self.options, **self.by_network.get(network, {})}


def vgg_small() -> nn.Module:
    """Six convolutions, the last ones wider than they need to be: 16 16 32 32 128 128."""
    layers: list[nn.Module] = []
    width_in = 3
    for count, channels in ((2, 16), (2, 32), (2, 128)):
        for _ in range(count):
            layers += [bench_models.block(width_in, channels, 3), nn.ReLU(inplace=True)]
            width_in = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width_in, 10))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "vgg16_bn": bench_models.vgg16_bn,
    "resnet32": models.resnet32,
    "resnet56": models.resnet56,
    "densenet40": bench_models.densenet40,
    "mobilenet_v2": lambda: bench_models.mobilenet_v2(classes=10, strides=(1, 1, 1, 2, 2, 1, 2, 1)),
    "vgg_small": vgg_small,
    "resnet56_projection": lambda: models.resnet56(shortcut="projection"),
    "resnet8": lambda: models.CifarResNet(8, shortcut="projection"),
}

STEPS = {"schedule": "step", "decay": 0.1, "lr": 0.1, "weight_decay": 1e-4, "batch_size": 64}
VGG = {"epochs": 200, "milestones": (0.5, 0.75, 0.95)}
RESNET = {"epochs": 300, "milestones": (1 / 2, 2 / 3, 5 / 6, 29 / 30)}
COSINE = {"schedule": "cosine", "lr": 0.1, "lr_warmup": 0.05, "batch_size": 128}
RECIPES: Mapping[str, Recipe] = {
    "papers": Recipe(None, {**STEPS, **RESNET}, {"vgg16_bn": VGG}),
    "short": Recipe(None, {**COSINE, "epochs": 30}),
    "small": Recipe(10_000, {**COSINE, "epochs": 12, "batch_size": 64}),
    "medium": Recipe(None, {**COSINE, "epochs": 12, "batch_size": 64}),
    "trial": Recipe(64, {**COSINE, "epochs": 2, "batch_size": 16, "recalibrate": 2}),
}
SMALL = ("small", "medium")  # the recipes for a table's small networks


@dataclass(frozen=True)
class Table:
    """What is compared with what.

    Attributes:
        title: of its part of the report.
        arms: in the order of its lines; one that is `after` another comes behind it.
        networks: for the large recipes.
        small_networks: for the small ones.
        plots: what is drawn of it, of `report.PLOTS`.
    """

    title: str
    arms: tuple[Arm, ...]
    networks: tuple[str, ...]
    small_networks: tuple[str, ...] = ("vgg_small", "resnet8")
    plots: tuple[str, ...] = ("accuracy by macs", "accuracy by macs of the training")


BUDGET = "macs=0.27"
LINEAR = {"budget_schedule": "linear{begin=0.1,end=0.4}", "settle": 0.5}
CUBIC = {"budget_schedule": "cubic{begin=0.1,end=0.4}", "settle": 0.5}
CONSTANT = {"budget_schedule": "constant", "settle": 0.5}
EARLY = {"budget_schedule": "constant", "settle": 0.75}  # what balance has by default

DENSE = Dense("dense")
UTILITY = Gated("utility, cubic", policy="utility", budget=BUDGET, options=CUBIC)
HALF = Gated("utility, cubic, macs=0.5", policy="utility", budget="macs=0.5", options=CUBIC)
FEW = Gated("utility, cubic, params=0.11", policy="utility", budget="params=0.11", options=CUBIC)
BALANCE = Gated("balance, constant", policy="balance", budget=BUDGET, options=EARLY)
BALANCE_HALF = Gated(
    "balance, constant, macs=0.5", policy="balance", budget="macs=0.5", options=EARLY
)
BALANCE_LONGER = Gated(
    "balance, constant, equal macs",
    after=UTILITY.name,
    policy="balance",
    budget=BUDGET,
    options=EARLY,
)
ROUNDED = Gated(
    "utility, cubic, rounded widths", policy="utility", budget=BUDGET, round_to=None, options=CUBIC
)
BALANCE_ROUNDED = Gated(
    "balance, constant, rounded widths",
    policy="balance",
    budget=BUDGET,
    round_to=None,
    options=EARLY,
)
PUBLISHED_UTILITY = Gated(
    "utility as published, keep=0.5",
    policy="utility{decay=0.6,scale=max,saliency=sample,reallocate=1}",
    budget="keep=0.5,floor=0",
    warmup=0.05,
    options={
        "budget_schedule": "constant",
        "settle": 0.0,
        "schedule": "step",
        "milestones": (0.5, 0.75, 0.95),
        "lr_warmup": 0.0,
    },
)
ABLATION = (
    ROUNDED,
    BALANCE,
    BALANCE_ROUNDED,
    PUBLISHED_UTILITY,
    Gated("utility, linear", policy="utility", budget=BUDGET, options=LINEAR),
    Gated("utility, constant", policy="utility", budget=BUDGET, options=CONSTANT),
    Gated(
        "utility, uniform widths, cubic",
        policy="utility{reallocate=0}",
        budget=BUDGET,
        options=CUBIC,
    ),
    Gated("cucb, cubic", policy="cucb", budget=BUDGET, options=CUBIC),
    Gated("cucb, constant", policy="cucb", budget=BUDGET, options=CONSTANT),
    Gated("magnitude, cubic", policy="magnitude", budget=BUDGET, options=CUBIC),
    Gated("magnitude, constant", policy="magnitude", budget=BUDGET, options=CONSTANT),
    Gated("fixed, cubic", policy="fixed", budget=BUDGET, options=CUBIC),
    Gated("fixed, constant", policy="fixed", budget=BUDGET, options=CONSTANT),
    Gated("random, constant", policy="random", budget=BUDGET, options=CONSTANT),
)
CONTROLS = (
    BALANCE_LONGER,
    Narrow("narrow, widths found, equal macs", after=UTILITY.name),
    Narrow("narrow, widths found, equal epochs", after=UTILITY.name, equal="epochs"),
    Narrow("narrow, uniform widths, equal macs", after=UTILITY.name, budget=BUDGET),
    Peer("Torch-Pruning, GroupMagnitude", after=UTILITY.name),
    Peer("Torch-Pruning, GroupNorm, sparse", after=UTILITY.name, sparse=True),
)
TABLES: Mapping[str, Table] = {
    "cifar10": Table(
        "Accuracy by size",
        (DENSE, HALF, BALANCE_HALF, UTILITY, BALANCE, FEW),
        ("vgg16_bn", "resnet32", "resnet56", "densenet40", "mobilenet_v2"),
    ),
    "ablation": Table(
        "Policies and schedules",
        (DENSE, UTILITY, *ABLATION),
        ("resnet32", "vgg16_bn"),
        plots=(*Table.plots, "widths", "churn", "scores"),
    ),
    "cost": Table(
        "What a whole training costs",
        (DENSE, HALF, UTILITY, ROUNDED, BALANCE, BALANCE_ROUNDED),
        ("resnet32", "vgg16_bn"),
        plots=("accuracy by macs of the training",),
    ),
    "peers": Table(
        "The same compute, spent otherwise",
        (DENSE, UTILITY, *CONTROLS),
        ("vgg16_bn", "resnet56_projection"),
    ),
}
PUBLISHED: Mapping[str, tuple[tuple[str, float, float], ...]] = {
    "vgg16_bn": (
        ("arXiv 2007.01486", 0.267, 93.50),
        ("OTOv2", 0.266, 93.27),
        ("HRank", 0.347, 92.34),
    ),
    "resnet32": (("arXiv 2007.01486", 0.498, 92.60), ("PruneTrain", 0.34, 91.8)),
    "resnet56": (
        ("Torch-Pruning", 0.469, 93.77),
        ("Torch-Pruning", 0.389, 93.64),
        ("HRank", 0.5, 93.17),
    ),
    "densenet40": (("HRank", 0.592, 94.24),),
}
