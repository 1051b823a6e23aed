"""Parts that the user checkpoints keep no activations in the gated network either."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from fxprune import attach, instrument, shrink
from fxprune.tracing.checkpoints import checkpointed_parts

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """Blocks of an activation each, checkpointed as `how` says."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU())
                for _ in range(6)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "sequential":
            x = checkpoint_sequential(self.blocks, 3, x, use_reentrant=False)
        for block in self.blocks if self.how != "sequential" else ():
            if self.how == "always" or (self.how == "training" and self.training):
                x = checkpoint(block, x, use_reentrant=False)
            elif self.how == "method":
                x, y = checkpoint(self.two, block, x, use_reentrant=False)
                x = x + y
            else:
                x = block(x)
        out: Tensor = self.last(x)
        return out

    def two(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = block(x)
        return y, y.mean(1, keepdim=True) * 0.1


def kept(network: nn.Module) -> int:
    """The numbers that a forward keeps for backward."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        seen[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(X)
    return sum(seen.values())


def made(how: str, **settings: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Blocks(how).train()
    return model, instrument(model, (X,), **settings)


@pytest.mark.parametrize("how", ["always", "training", "sequential", "method"])
def test_the_gated_network_keeps_no_more_than_the_dense_one(how: str) -> None:
    model, gated = made(how, budget="keep=0.99", round_to=1)
    assert kept(gated) <= kept(model)
    _, plain = made("never", budget="keep=0.99", round_to=1)
    assert kept(gated) < kept(plain) / 1.5
    assert len([*checkpointed_parts(gated.both_graphs[0])]) == (2 if how == "sequential" else 6)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("policy", ["random", "utility{warmup=2,reallocate=2}"])
@pytest.mark.parametrize("how", ["always", "training", "method"])
def test_gradients_are_those_without_checkpoints(how: str, policy: str) -> None:
    """At all widths; statistics aside, which a recomputed norm measures twice, as in PyTorch."""

    def trained(network: Any) -> Any:
        optimizer = torch.optim.SGD(network.parameters(), 0.05)
        attach(network, optimizer)
        for _ in range(4):
            network(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return network

    one, two = trained(made(how, policy=policy)[1]), made("never", policy=policy)[1]
    if how == "method":
        assert torch.isfinite(one(X)).all()
        return
    two = trained(two)
    assert one.widths == two.widths
    first, second = one.dense_state_dict(), two.dense_state_dict()
    for name, _ in one.named_parameters():
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-7)
    one.eval()
    torch.testing.assert_close(shrink(one)(X), one(X), rtol=0, atol=1e-5)


def test_a_part_that_reads_the_images_learns_too() -> None:
    """Nothing that goes in has a gradient: a reentrant checkpoint would give its weights none."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), nn.Conv2d(8, 8, 3))
            self.head = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.head(checkpoint(self.part, x, use_reentrant=False))

    gated = instrument(First().train(), (X,), budget="keep=0.5", round_to=1)
    assert len([*checkpointed_parts(gated.both_graphs[0])]) == 1
    gated(X).square().mean().backward()
    gradients = [parameter.grad for parameter in gated.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)
