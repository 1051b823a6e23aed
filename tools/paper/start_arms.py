"""The arms of the trained starts: what becomes of a trained network at a share of its macs.

An arm gives a network to train, plain or gated, and what that cost; `starts.py` trains all alike.
"""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import search
import torch
import tuning
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.budget.budget import Budget
from fxprune.data.splits import TensorSplit
from fxprune.gated import refit

EXAMPLE = (torch.zeros(2, 3, 32, 32),)
UNIFORM = "utility{reallocate=0}"
SCORING = 20  # batches on which criteria that need gradients are measured


@dataclass(frozen=True)
class Made:
    """What an arm begins its training with.

    Attributes:
        model: plain or gated.
        share: its macs (a gated one's at its budget), as a share of the dense network's.
        spent: dense epochs that finding it took.
        note: what a reader of the result has to know.
    """

    model: nn.Module
    share: float
    spent: float = 0.0
    note: str = ""


Maker = Callable[[nn.Module, float, TensorSplit, int], Made]


@dataclass(frozen=True)
class StartArm:
    """A way to go on from a trained network.

    Attributes:
        make: from the dense network, the wanted share of its macs, the training images and a seed.
        taught: whether the dense network's logits are learned too.
        changes: of `tuning.Plan`.
    """

    make: Maker
    taught: bool = False
    changes: tuple[tuple[str, object], ...] = ()

    def plan(self, plan: tuning.Plan) -> tuning.Plan:
        """The plan with this arm's changes."""
        return dataclasses.replace(plan, **dict(self.changes))  # type: ignore[arg-type]


def dense(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
    """The network as it is, trained on."""
    del share, split, seed
    return Made(copy.deepcopy(model), 1.0)


def narrow(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
    """Uniform widths, new weights."""
    import models

    made = uniform(model, share, split, seed)
    torch.manual_seed(seed)
    models.initialised(made.model)
    return made


def uniform(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
    """Uniform widths, the largest weights, at once."""
    del split
    return _compact(_instrumented(model, "fixed", share, seed))


def gated(policy: str, within: bool = False, floor: float = Budget.floor) -> Maker:
    """FXPrune with a policy, which chooses while the network trains.

    Args:
        policy: how channels are chosen.
        within: whether the residual streams stay whole.
        floor: the share of its channels that each group keeps at least.
    """

    def make(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
        del split
        network = _instrumented(model, policy, share, seed, within, floor)
        return Made(network, share)

    return make


def from_scratch(make: Maker) -> Maker:
    """The same arm with new weights in place of the trained ones."""
    import models

    def anew(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
        torch.manual_seed(seed)
        return make(models.initialised(copy.deepcopy(model)), share, split, seed)

    return anew


def one_shot(
    policy: str = "utility", tried: int = 0, mend: bool = False, within: bool = False
) -> Maker:
    """FXPrune's scores of some batches, one choice, a plain network from then on.

    Args:
        policy: what scores.
        tried: how many allocations of the widths are tried (`search.py`).
        mend: whether the result is mended (`fxprune.gated.refit`).
        within: whether the residual streams stay whole.
    """

    def make(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
        network = _instrumented(model, policy, share, seed, within)
        spent = scored(network, split, seed)
        if tried:
            source = tuning.batches(split, seed + 3, 512)
            measured = [next(source)[0]]
            probe = search.Probe(measured, *next(tuning.batches(split, seed + 4, 1024)))
            network.settle(search.best_of(network, probe, tried, seed))
            spent += tried * share * tuning.FORWARD * probe.forwards / len(split)
        network.settle()
        made = _compact(network)
        if mend:
            spent += mended(model, network, made, split, seed)
        return dataclasses.replace(made, spent=spent)

    return make


def scored(network: fxprune.GatedModule, split: TensorSplit, seed: int) -> float:
    """Show a policy the gradients of some batches; no weight changes. Returns dense epochs."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    controller = fxprune.attach(network, optimizer)
    network.train()
    network.spend(1.0)
    statistics = {name: tensor.clone() for name, tensor in network.named_buffers()}
    source = tuning.batches(split, seed + 1)
    for (images, labels), _ in zip(source, range(SCORING), strict=False):
        network.spend(1.0)
        optimizer.zero_grad()
        tuning.loss_of(tuning.logits_of(network, images), labels, None).backward()
        optimizer.step()
    network.spend(1.0)
    for name, tensor in network.named_buffers():
        tensor.copy_(statistics[name])
    controller.detach()
    return SCORING * tuning.BATCH / len(split)


def mended(
    model: nn.Module,
    network: fxprune.GatedModule,
    made: Made,
    split: TensorSplit,
    seed: int,
    images: int = 1024,
) -> float:
    """Refit a compact network; returns dense epochs.

    Its norms keep the dense network's statistics, which are right once its layers give what the
    dense ones gave: measured anew they cost accuracy.
    """
    inputs, _ = next(tuning.batches(split, seed + 2, images))
    assert isinstance(made.model, fx.GraphModule)
    names = refit.refit(network, made.model, model, inputs)
    passes = len(names) / 2  # each of both networks is passed through up to the layer
    return tuning.FORWARD * images * passes * (1 + made.share) / len(split)


def torch_pruning(importance: str, sparse: float = 0.0) -> Maker:
    """Torch-Pruning, all layers at once by global importance, down to the wanted macs.

    Where what it makes of the whole network does not run, it prunes within the blocks alone.

    Args:
        importance: by which criterion, such as "Magnitude".
        sparse: how many dense epochs it trains first with a penalty on the norms of groups.
    """

    def make(model: nn.Module, share: float, split: TensorSplit, seed: int) -> Made:
        try:
            return _torch_pruned(model, share, split, seed, importance, sparse, inner=False)
        except RuntimeError:
            made = _torch_pruned(model, share, split, seed, importance, sparse, inner=True)
            return dataclasses.replace(made, note="within the blocks: pruned whole it does not run")

    return make


def _torch_pruned(
    model: nn.Module,
    share: float,
    split: TensorSplit,
    seed: int,
    importance: str,
    sparse: float,
    inner: bool,
) -> Made:
    import torch_pruning as tp

    network = copy.deepcopy(model)
    whole, spent = macs_of(model), sparse
    if importance == "Taylor":
        spent += SCORING * tuning.BATCH / len(split)
        network.eval()
        source = tuning.batches(split, seed + 1)
        for (images, labels), _ in zip(source, range(SCORING), strict=False):
            tuning.loss_of(tuning.logits_of(network, images), labels, None).backward()
    stays = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if inner:
        convs = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
        stays += [m for name, m in convs if not name.endswith("conv1")]
    criterion = getattr(tp.importance, f"Group{importance}Importance")
    settings = {
        "importance": criterion(normalizer="max") if sparse else criterion(),
        "global_pruning": True,
        "pruning_ratio": 1.0,
        "max_pruning_ratio": 0.95,
        "iterative_steps": 200,
        "ignored_layers": stays,
    }
    if sparse:
        pruner = tp.pruner.GroupNormPruner(network, EXAMPLE[0], reg=5e-4, **settings)
        _make_sparse(network, pruner, split, seed, sparse)
    else:
        pruner = tp.pruner.BasePruner(network, EXAMPLE[0], **settings)
    while macs_of(network) > share * whole:
        pruner.step()
    network.zero_grad(set_to_none=True)
    return Made(network, macs_of(network) / whole, spent)


def _make_sparse(
    network: nn.Module, pruner: Any, split: TensorSplit, seed: int, epochs: float
) -> None:
    """Train with Torch-Pruning's penalty, at the rate and strength of its own benchmark."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    network.train()
    steps = range(int(epochs * len(split) / tuning.BATCH))
    for (images, labels), _ in zip(tuning.batches(split, seed + 5), steps, strict=False):
        optimizer.zero_grad()
        tuning.loss_of(tuning.logits_of(network, images), labels, None).backward()
        pruner.regularize(network)
        optimizer.step()


def _instrumented(
    model: nn.Module,
    policy: str,
    share: float,
    seed: int,
    within: bool = False,
    floor: float = Budget.floor,
) -> fxprune.GatedModule:
    """With widths that are not rounded, as the others have them."""
    streams = ["conv", "blocks.3.conv2", "blocks.6.conv2"] if within else []
    budget = f"macs={share},floor={floor}"
    return fxprune.instrument(
        model, EXAMPLE, policy, budget, round_to=1, seed=seed, exclude=streams
    )


def _compact(network: fxprune.GatedModule) -> Made:
    widths = network.best().widths
    share = network.cost.macs(widths) / network.cost.dense_macs
    return Made(fxprune.shrink(network), share)


def macs_of(model: nn.Module) -> int:
    """Multiply-accumulates of one example, by torch's own counter, which counts two for each."""
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(EXAMPLE[0][:1])
    model.train(training)
    return int(counter.get_total_flops()) // 2


def params_of(model: nn.Module) -> int:
    """Elements of all parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def widths_of(model: nn.Module) -> list[int]:
    """Output channels of all convolutions."""
    return [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]


ARMS: dict[str, StartArm] = {
    "dense, trained on": StartArm(dense),
    "utility": StartArm(gated("utility")),
    "utility, slow fall": StartArm(
        gated("utility"), changes=(("schedule", "cubic{begin=0.1,end=0.4}"),)
    ),
    "utility, floor 0.35": StartArm(gated("utility", floor=0.35)),
    "utility, taught": StartArm(gated("utility"), taught=True),
    "utility, one-shot": StartArm(one_shot()),
    "utility, one-shot, mended": StartArm(one_shot(mend=True)),
    "utility, one-shot, mended, taught": StartArm(one_shot(mend=True), taught=True),
    "utility, uniform widths, one-shot": StartArm(one_shot(UNIFORM)),
    "utility, uniform widths, one-shot, mended": StartArm(one_shot(UNIFORM, mend=True)),
    "utility, uniform widths": StartArm(gated(UNIFORM)),
    "utility, searched, mended": StartArm(one_shot(tried=24, mend=True)),
    "utility, searched, mended, taught": StartArm(one_shot(tried=24, mend=True), taught=True),
    "utility within blocks": StartArm(gated("utility", within=True)),
    "utility within blocks, one-shot, mended": StartArm(one_shot(mend=True, within=True)),
    "utility, uniform widths within blocks, one-shot, mended": StartArm(
        one_shot(UNIFORM, mend=True, within=True)
    ),
    "balance": StartArm(gated("balance")),
    "cucb": StartArm(gated("cucb")),
    "magnitude": StartArm(gated("magnitude")),
    "fixed": StartArm(gated("fixed")),
    "Torch-Pruning, GroupMagnitude": StartArm(torch_pruning("Magnitude")),
    "Torch-Pruning, GroupMagnitude, taught": StartArm(torch_pruning("Magnitude"), taught=True),
    "Torch-Pruning, GroupTaylor": StartArm(torch_pruning("Taylor")),
    "Torch-Pruning, GroupNorm": StartArm(torch_pruning("Magnitude", sparse=0.5)),
    "uniform, one-shot": StartArm(uniform),
    "narrow from scratch": StartArm(narrow),
    "utility from scratch": StartArm(from_scratch(gated("utility"))),
    "balance from scratch": StartArm(
        from_scratch(gated("balance")), changes=(("schedule", "constant"), ("settle", 0.25))
    ),
}
