"""The contenders of the step benchmark: ways to train a network at some of its channels.

* `dense`: the network itself.
* `masked`: the dense network with a 0/1 mask of the channels multiplied behind each gate point, as
  the papers' own code does it. The masks are given; what choosing them costs is not counted.
* `gathered`: dense parameters; each forward indexes the narrow ones out of them. The choice is
  given here as well.
* `gated`: fxprune with a new selection after every step; `gated every=10` after every tenth;
  `settled` with a fixed one.
* `narrow`: a plain network of the kept widths, from the factory of the dense one.
* `compact`: what `fxprune.shrink` returns.
* `torch-pruning`: the dense network after one step of Torch-Pruning at the same ratio.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from bench_models import NETWORKS
from torch import Tensor, nn

import fxprune
from fxprune.bank.bank import take


@dataclass(frozen=True)
class Case:
    """What is measured: every contender has one such run.

    Attributes:
        network: a name of `NETWORKS`.
        batch: images in a step.
        keep: the share of the channels of each group that executes.
        side: height and width of the images.
        optimizer: `sgd` (momentum 0.9, weight decay) or `adamw`.
        policy: that of the gated networks.
        device: as PyTorch names it: `cpu`, `cuda`.
        amp: `off`, or the type that autocast computes in: `bf16`, `fp16`.
        channels_last: whether images and weights lie so in memory.
        compile: whether `torch.compile` runs the network.
        threads: of a CPU.
        age: steps that the gated networks have taken before, on two random images each. What is
            little known is tried more, so the channels that change are most at the beginning.
    """

    network: str
    batch: int
    keep: float
    side: int
    optimizer: str = "sgd"
    policy: str = "cucb"
    device: str = "cpu"
    amp: str = "off"
    channels_last: bool = False
    compile: bool = False
    threads: int = 1
    age: int = 0

    def __str__(self) -> str:
        options = [
            f"{self.network} {self.side}px batch={self.batch} keep={self.keep:g} {self.optimizer}",
            *([] if self.policy == "cucb" else [self.policy]),
            *([] if self.amp == "off" else [self.amp]),
            *(["channels_last"] if self.channels_last else []),
            *(["compile"] if self.compile else []),
            *([f"age={self.age}"] if self.age else []),
            f"{self.device} x{self.threads}" if self.device == "cpu" else self.device,
        ]
        return " ".join(options)

    def example(self) -> tuple[Tensor]:
        """An input for tracing."""
        return (torch.zeros(2, 3, self.side, self.side),)


class Masked(nn.Module):
    """The dense network, its gate points multiplied by masks."""

    def __init__(self, model: nn.Module, gated: fxprune.GatedModule) -> None:
        super().__init__()
        self.model = model
        kept = gated.selection()
        for gate in gated.channels.gates:
            name, dim = gate.parameters[0]
            mask = torch.zeros(gated.channels.shapes[name][dim])
            mask[kept[name][dim]] = 1
            module = model.get_submodule(name.rpartition(".")[0])
            module.register_buffer("channel_mask", mask.view(1, -1, 1, 1), persistent=False)
            module.register_forward_hook(lambda module, _, output: output * module.channel_mask)

    def forward(self, x: Tensor) -> Tensor:
        """As the model."""
        return self.model(x)


class Gathered(nn.Module):
    """Dense parameters, of which each forward indexes the narrow ones."""

    def __init__(self, model: nn.Module, gated: fxprune.GatedModule) -> None:
        super().__init__()
        dense, kept = dict(model.named_parameters()), gated.selection()
        self.names = list(dense)
        self.dense = nn.ParameterList(dense.values())
        self.narrow = (fxprune.shrink(gated),)  # a tuple hides its parameters from the optimiser
        self.places = [kept.get(name, {}) for name in self.names]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.narrow[0]._apply(fn, recurse)
        self.places = [{dim: fn(line) for dim, line in places.items()} for places in self.places]
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> nn.Module:
        """Sets the mode of the narrow network too."""
        self.narrow[0].train(mode)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the narrow network on slices of the dense parameters."""
        narrow = {
            name: take(parameter, places) if places else parameter
            for name, parameter, places in zip(self.names, self.dense, self.places)
        }
        return torch.func.functional_call(self.narrow[0], narrow, (x,))


def _dense(case: Case) -> nn.Module:
    return NETWORKS[case.network].build(1.0)


def _gated(case: Case, model: nn.Module | None = None, every: int = 1) -> fxprune.GatedModule:
    budget = f"keep={case.keep}"
    model = _dense(case) if model is None else model
    return fxprune.instrument(model, case.example(), case.policy, budget, round_to=1, every=every)


def _masked(case: Case) -> nn.Module:
    model = _dense(case)
    return Masked(model, _gated(case, model))


def _gathered(case: Case) -> nn.Module:
    model = _dense(case)
    return Gathered(model, _gated(case, model))


def _settled(case: Case) -> nn.Module:
    gated = _gated(case)
    gated.settle()
    return gated


def _torch_pruning(case: Case) -> nn.Module:
    import torch_pruning

    model = _dense(case)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    importance = torch_pruning.importance.GroupMagnitudeImportance()
    torch_pruning.pruner.BasePruner(
        model, case.example(), importance, pruning_ratio=1 - case.keep, ignored_layers=last
    ).step()
    return model


CONTENDERS: dict[str, Callable[[Case], nn.Module]] = {
    "dense": _dense,
    "masked": _masked,
    "gathered": _gathered,
    "gated": _gated,
    "gated every=10": lambda case: _gated(case, every=10),
    "settled": _settled,
    "narrow": lambda case: NETWORKS[case.network].build(case.keep),
    "compact": lambda case: fxprune.shrink(_gated(case)),
    "torch-pruning": _torch_pruning,
}
