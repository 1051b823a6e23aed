"""Saliencies against their definitions, with autograd's own gradients at the gate points."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument
from fxprune.channels.graph import Layout, Role
from fxprune.policies import Policy
from fxprune.policies.base import Observes, State
from tests.support.nets import BY_NAME, NETS, Net
from tests.support.oracle import loss_of


@dataclass(frozen=True)
class Recorder(Policy):
    """A policy that keeps what it is shown and stays on the first channels."""

    keys: ClassVar[tuple[str, ...]] = ("recorder",)

    measure: Observes = "batch"
    seen: list[Tensor] = field(default_factory=list, init=False)

    @property
    def observes(self) -> Observes:
        return self.measure

    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        del state, layout
        assert len(selection) == len(saliency)
        self.seen.append(saliency.clone())

    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        del state, explore
        return -torch.arange(layout.total).float()


def observed(net: Net, measure: Observes, before: Callable[[GatedModule], Any]) -> Any:
    """One training step; what `before` returned, and the saliency that the policy saw."""
    recorder = Recorder(measure)
    gated = instrument(
        net.model().train(), net.inputs(), policy=recorder, budget="keep=0.6", every=2
    )
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    attach(gated, optimizer)
    watched = before(gated)
    loss_of(gated, net, 0).backward()
    optimizer.step()
    assert recorder.seen[0].dtype == torch.float32
    return gated, watched, recorder.seen[0]


class Watch:
    """The activations that some modules return, and their gradients."""

    def __init__(self, gated: GatedModule, names: list[str]) -> None:
        self.activations: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        for name in names:
            gated.get_submodule(name).register_forward_hook(self._forward(name))

    def _forward(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            del module, args
            self.activations[name] = output.detach().clone()
            output.register_hook(lambda grad: self.gradients.update({name: grad.clone()}))

        return hook

    def products(self) -> Iterator[tuple[str, Tensor]]:
        """For each module g * a summed over positions: [N, C]."""
        for name, activation in self.activations.items():
            yield name, _per_sample(activation * self.gradients[name])


def _per_sample(product: Tensor) -> Tensor:
    return product.reshape(*product.shape[:2], -1).sum(2)


def by_channel(gated: GatedModule, parts: Iterable[tuple[str, int, Tensor]]) -> Tensor:
    """Adds values, one for each compact position along a parameter's dimension, up: [K]."""
    total = torch.zeros(gated.channels.layout.total, dtype=torch.float64)
    kept = torch.zeros(gated.channels.layout.total + 1, dtype=torch.bool)
    kept[gated.executing] = True
    for name, dim, values in parts:
        channel = gated.channels.axes[name][dim].channel
        total.index_add_(0, channel[kept[channel]], values.double())
    return total[gated.executing]


# Where each net's channels are read: behind the norm that follows a convolution, else behind the
# convolution itself.
GATES = {
    "vgg": ["features.0", "features.3", "classifier.0"],
    "vgg_bn": ["features.1", "features.5", "classifier.0"],
    "resnet_projection": [
        "bn",
        *(f"blocks.{block}.bn{norm}" for block in range(3) for norm in (1, 2)),
        "blocks.1.shortcut.1",
    ],
    "densenet": ["a.norm", "a.conv", "b.conv", "transition.2", "c.conv"],
    "mobilenet": [
        "stem.1",
        *(f"{block}.conv.{norm}" for block in "abc" for norm in (1, 4, 7)),
    ],
    "shuffle_split": ["stem", "first.1", "second.1"],
    "grouped_few": ["stem", "bn"],
    "squeeze_excite": ["bn", "reduce", "expand", "head"],
}


@pytest.mark.parametrize("name", GATES)
def test_the_batch_form_is_autograds(name: str) -> None:
    """|sum over the batch of g * a|, from the parameters' gradients alone."""
    gated, watch, seen = observed(BY_NAME[name], "batch", lambda g: Watch(g, GATES[name]))
    sums = ((f"{name}.weight", 0, p.sum(0).abs()) for name, p in watch.products())
    wanted = by_channel(gated, sums)
    assert wanted.count_nonzero() > len(wanted) / 2
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_the_sample_form_is_the_papers(name: str) -> None:
    """Mean over the samples of |sum over positions of g * a|."""
    gated, watch, seen = observed(BY_NAME[name], "sample", lambda g: Watch(g, GATES[name]))
    means = ((f"{name}.weight", 0, p.abs().mean(0)) for name, p in watch.products())
    wanted = by_channel(gated, means)
    assert wanted.count_nonzero() > len(wanted) / 2
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.sampled(9)
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)
def test_taps_change_nothing_but_what_is_seen(net: Net) -> None:
    """The network with taps has the outputs and gradients of the one without, in both modes."""
    results = []
    for measure in ("batch", "sample"):
        gated = net.gated(policy=Recorder(measure))
        outputs = {}
        for training in (False, True):
            gated.train(training)
            torch.manual_seed(0)
            outputs[training] = gated(*net.inputs(3))
        leaves = torch.utils._pytree.tree_leaves(outputs[True])
        sum(leaf.square().sum() for leaf in leaves).backward()
        grads = [p.grad for p in gated.parameters() if p.grad is not None]
        results.append((*torch.utils._pytree.tree_leaves(outputs), *grads))
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


def parameters(gated: GatedModule) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in gated.named_parameters()}


@pytest.mark.parametrize("name", ["resnet_projection", "shuffle_unit", "raw", "tied"])
def test_magnitude_is_the_norm_of_what_makes_a_channel(name: str) -> None:
    """The kernels as they execute, without the columns that rest."""
    gated, compact, seen = observed(BY_NAME[name], "magnitude", parameters)
    rows = {
        (member.parameter, member.dim)
        for group in gated.channels.groups
        for member in group.members
        if member.role is Role.OUT
    }
    squares = (
        (name, dim, compact[name].square().movedim(dim, 0).flatten(1).sum(1)) for name, dim in rows
    )
    wanted = by_channel(gated, squares).sqrt()
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-5, atol=0)


def test_bn_scale_is_the_scale_of_the_norm_behind() -> None:
    name = "resnet_projection"
    gated, compact, seen = observed(BY_NAME[name], "bn_scale", parameters)
    names = [f"{norm}.weight" for norm in GATES[name]]
    wanted = by_channel(gated, ((name, 0, compact[name].abs()) for name in names))
    torch.testing.assert_close(seen.double(), wanted, rtol=1e-5, atol=0)


def test_a_parameter_without_a_gradient_counts_nothing() -> None:
    recorder = Recorder("batch")
    net = BY_NAME["vgg_bn"]
    gated = net.gated(policy=recorder).train()
    optimizer = torch.optim.SGD(gated.parameters(), 0.1)
    attach(gated, optimizer)
    for parameter in gated.features.parameters():
        parameter.requires_grad = False
    loss_of(gated, net, 0).backward()
    optimizer.step()
    first, second, third = recorder.seen[0].split(gated.widths)
    assert not first.any()
    assert not second.any()
    assert third.any()
