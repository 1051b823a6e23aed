"""The same networks through Torch-Pruning's documented API, held to the same law.

    pruner = tp.pruner.BasePruner(model, x, importance=tp.importance.GroupMagnitudeImportance(),
                                  pruning_ratio=0.5, ignored_layers=[classifier])
    pruner.step()

The check does not use what the pruner says of itself. Every element of the dense weights is given
a value of its own first, so that the pruned tensors tell by their values which rows and columns
were kept. Then the dense network, with the removed columns zero in every row that was kept, has to
compute what the pruned network computes. Where statistics are mixed across channels (as fxprune's
analysis of the dense network says) this is not so by nature, and the pruned network only has to
run; this favours the peer.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from zoo_check import KEEP, TOLERANCE, Record, Stages, counted, square
from zoo_entry import Entry

import fxprune
from tests.support.law import gap


def examine(entry: Entry, record: Record) -> None:
    """Prunes a network and fills `record`, also where it raises half-way."""
    import torch_pruning

    stages = Stages(record)
    with stages.stage("build"):
        model = distinct(entry.build().double())
        inputs = (entry.input(1, torch.float64),)
        dense = copy.deepcopy(model)
        record["params"] = sum(parameter.numel() for parameter in dense.parameters())
        with torch.no_grad():
            macs = counted(lambda: dense(*inputs))
    with stages.stage("prune"):
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=1 - KEEP,
            ignored_layers=_ends(model, entry),
        )
        pruner.step()
    with stages.stage("run"), torch.no_grad():
        found = model(*inputs)
        record["macs_kept"] = counted(lambda: model(*inputs)) / max(macs, 1)
        kept = sum(parameter.numel() for parameter in model.parameters())
        if kept >= record["params"]:
            raise AssertionError("no parameter became smaller")
    with stages.stage("law"), torch.no_grad():
        record["mixing"] = _mixes(entry)
        if not record["mixing"]:
            zero_removed(dense, model)
            record["law"] = gap(_leaves(dense(*inputs)), _leaves(found))
            if not record["law"] <= TOLERANCE[torch.float64]:
                raise AssertionError(f"the law does not hold to {TOLERANCE[torch.float64]:.0e}")
    with stages.stage("step"):
        model.train()
        square(model(*(entry.input(2, torch.float64),))).backward()
        record["step"] = True


def _ends(model: nn.Module, entry: Entry) -> list[nn.Module]:
    """The layers that make the outputs: classifiers, and what the entry names."""
    shape = (entry.input(1, next(model.parameters()).dtype),)
    with torch.no_grad():
        classes = {leaf.shape[1] for leaf in _leaves(model(*shape)) if leaf.dim() > 1}
    named = [model.get_submodule(name) for name in entry.outputs if _has(model, name)]
    if named:
        return named
    return [
        module
        for module in model.modules()
        if (isinstance(module, nn.Linear) and module.out_features in classes)
        or (isinstance(module, nn.modules.conv._ConvNd) and module.out_channels in classes)
    ]


def _has(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


def _mixes(entry: Entry) -> int:
    try:
        return len(fxprune.analyze(entry.build(), (entry.input(1, torch.float32),)).mixing)
    except fxprune.FxpruneError:
        return 0


def _leaves(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


@torch.no_grad()
def distinct(model: nn.Module) -> nn.Module:
    """Gives every element of every matrix and kernel a value that no other element of it has."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter += 1e-6 * torch.rand_like(parameter) * parameter.abs().mean().clamp_min(1e-3)
    return model


@torch.no_grad()
def zero_removed(dense: nn.Module, pruned: nn.Module) -> None:
    """Zeroes, in every kept row of the dense weights, the columns that the pruned ones lack.

    Args:
        dense: the network before pruning, with distinct elements; changed in place.
        pruned: the same network with rows and columns removed.

    Raises:
        AssertionError: a pruned tensor has an element that its dense one lacks.
    """
    after = dict(pruned.named_parameters())
    for path, module in dense.named_modules():
        turned = isinstance(module, nn.modules.conv._ConvTransposeNd)
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if parameter.dim() > 1 and full in after:
                kept = _kept(parameter, after[full], full)
                rows = 1 if turned and module.groups == 1 else 0
                others = [dim for dim in range(parameter.dim()) if dim != rows]
                alive = kept.any(dim=others, keepdim=True) if others else kept
                parameter.masked_fill_(alive & ~kept, 0.0)


def _kept(dense: Tensor, pruned: Tensor, name: str) -> Tensor:
    """Which elements of a tensor are left: bool, of the dense shape."""
    values, order = dense.flatten().sort()
    wanted = pruned.flatten().sort().values  # in order, since a search then stays in the cache
    place = torch.searchsorted(values, wanted).clamp_(max=len(values) - 1)
    if not torch.equal(values[place], wanted):
        raise AssertionError(f"{name} has elements that the dense network lacks")
    mask = torch.zeros(dense.numel(), dtype=torch.bool)
    mask[order[place]] = True
    return mask.view(dense.shape)
