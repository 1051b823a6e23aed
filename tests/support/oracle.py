"""The oracle of training: a dense network of which only slices learn.

In every step the columns that consume resting channels are zero, a fresh optimiser of the same
kind steps on the executing slices of parameters and of its state, and these are put back. It
knows neither bank nor residents, and exchanges nothing.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import ChannelGraph, GatedModule
from fxprune.bank.bank import put
from fxprune.bank.exchange import Selection
from tests.support.law import zero_columns
from tests.support.topologies.base import Net

Make = Callable[[Any], torch.optim.Optimizer]


def loss_of(network: nn.Module, net: Net, step: int) -> Tensor:
    outputs = network(*net.inputs(4, seed=100 + step))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    labels = torch.randint(5, (4,), generator=torch.Generator().manual_seed(step))
    # a map (the U-Net's) counts by its mean
    return sum(F.cross_entropy(o.flatten(2).mean(2) if o.dim() > 2 else o, labels) for o in outputs)


class Oracle:
    """The dense network, trained on slices."""

    def __init__(self, model: nn.Module, graph: ChannelGraph, make: Make) -> None:
        self.model, self.graph, self.make = copy.deepcopy(model).train(), graph, make
        self.states: dict[str, dict[str, Tensor]] = {}

    def step(self, net: Net, step: int, chosen: Selection) -> None:
        clone = copy.deepcopy(self.model)
        zero_columns(clone, self.graph, chosen)
        loss_of(clone, net, step).backward()
        self._take_statistics(clone, chosen)
        slices = {}
        for name, parameter in self.model.named_parameters():
            grad = dict(clone.named_parameters())[name].grad
            leaf = nn.Parameter(self._kept(name, parameter.detach(), chosen).clone())
            leaf.grad = None if grad is None else self._kept(name, grad, chosen).clone()
            slices[name] = leaf
        optimizer = self.make(list(slices.values()))
        for name, leaf in slices.items():
            for key, tensor in self.states.get(name, {}).items():
                sliced = tensor.dim() > 0
                optimizer.state[leaf][key] = (
                    self._kept(name, tensor, chosen).clone() if sliced else tensor.clone()
                )
        optimizer.step()
        for name, leaf in slices.items():
            parameter = dict(self.model.named_parameters())[name]
            self._put(name, parameter.data, leaf.detach(), chosen)
            own = self.states.setdefault(name, {})
            for key, tensor in optimizer.state[leaf].items():
                if tensor.dim() == 0:
                    own[key] = tensor.clone()
                else:
                    dense = own.setdefault(key, torch.zeros_like(parameter))
                    self._put(name, dense, tensor, chosen)

    def _take_statistics(self, clone: nn.Module, chosen: Selection) -> None:
        new = dict(clone.named_buffers())
        for name, buffer in self.model.named_buffers():
            self._put(name, buffer, self._kept(name, new[name], chosen), chosen)

    def _index(self, name: str, shape: torch.Size, chosen: Selection) -> tuple[Tensor, ...]:
        executes = torch.zeros(self.graph.layout.total + 1, dtype=torch.bool)
        executes[chosen.channels] = True
        executes[-1] = True  # what belongs to no channel
        lines = [torch.arange(size) for size in shape]
        for dim, axis in self.graph.axes.get(name, {}).items():
            lines[dim] = executes[axis.channel].nonzero().flatten()
        return torch.meshgrid(*lines, indexing="ij")

    def _kept(self, name: str, dense: Tensor, chosen: Selection) -> Tensor:
        return dense[self._index(name, dense.shape, chosen)] if dense.dim() else dense

    def _put(self, name: str, dense: Tensor, kept: Tensor, chosen: Selection) -> None:
        if dense.dim():
            dense[self._index(name, dense.shape, chosen)] = kept
        else:
            dense.copy_(kept)


def moments(gated: GatedModule, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state of all channels, at its dense places: the bank and what executes."""
    state = gated.training_state()
    places = gated.bank.positions(
        state["trained/channels"], tuple(state["trained/widths"].tolist())
    )
    found = {}
    for name, parameter in gated.named_parameters():
        for key, tensor in optimizer.state.get(parameter, {}).items():
            if name in gated.channels.axes and tensor.shape == parameter.shape:
                whole = state.get(f"state/{key}/{name}", tensor.new_zeros(())).to(tensor.dtype)
                found[f"{key}/{name}"] = whole.expand(gated.channels.shapes[name]).clone()
                put(found[f"{key}/{name}"], gated.bank.of(name, places), tensor)
    return found


def resting(gated: GatedModule, name: str, chosen: Selection) -> Tensor:
    """Which elements of a dense tensor do not execute: bool, of its shape."""
    executes = torch.zeros(gated.channels.layout.total + 1, dtype=torch.bool)
    executes[chosen.channels] = True
    executes[-1] = True
    mask = torch.ones(gated.channels.shapes[name], dtype=torch.bool)
    for dim, axis in gated.channels.axes.get(name, {}).items():
        shape = [1] * mask.dim()
        shape[dim] = -1
        mask &= executes[axis.channel].view(shape)
    return ~mask
