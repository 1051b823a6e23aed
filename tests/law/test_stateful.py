"""Random sequences of what a training may do, beside a dense shadow that does none of it.

The shadow is the dense network's tensors and momentum by name. An optimiser's step changes of it
what the optimiser changed of the executing slices, read before any channel is exchanged. After each
action the gated network's dense tensors and momentum equal the shadow's to the bit, and it computes
what the user's own module does with the removed columns at zero.
"""

import copy
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from fxprune import GatedModule, attach, instrument, shrink
from fxprune.bank.bank import put
from tests.support.law import gap, zeroed
from tests.support.oracle import moments

Tensors = dict[str, Tensor]
INPUT = (4, 3, 7, 7)
POLICIES = ("random", "cucb{c=1}", "balance", "utility{warmup=2,reallocate=3}", "magnitude")
OPTIMIZERS = ("sgd", "adamw", "two")
LAYERS = ("0", "3", "6")
FALL = {"schedule": "linear{begin=0.1,end=0.8}", "steps": 12}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


def batch(seed: int, like: Tensor) -> Tensor:
    return torch.randn(INPUT, generator=torch.Generator().manual_seed(seed)).to(like.dtype)


class Training(RuleBasedStateMachine):
    """A gated network, its optimisers, averages, saved states, and the shadow."""

    @initialize(
        policy=st.sampled_from(POLICIES),
        kind=st.sampled_from(OPTIMIZERS),
        rate=st.sampled_from([0.0, 0.05]),
        schedule=st.booleans(),
    )
    def begin(self, policy: str, kind: str, rate: float, schedule: bool) -> None:
        self.policy, self.rate = policy, rate
        self.gated = self.made()
        self.seed = 0
        self.losses: list[Tensor] = []
        self.saved: tuple[Any, ...] | None = None
        self.averages: list[GatedModule] = []
        self.at_rate_0 = rate == 0.0
        self.shadow = self.dense()
        self.first = copy.deepcopy(self.shadow)
        self.momentum: Tensors = {}
        self.optimizers: list[torch.optim.Optimizer] = []
        self.optimize(kind, schedule)

    def made(self) -> GatedModule:
        return instrument(model().train(), (torch.zeros(INPUT),), policy=self.policy)

    # --- the shadow -----------------------------------------------------------------------

    def dense(self) -> Tensors:
        return {k: v for k, v in self.gated.dense_state_dict().items() if "num_batches" not in k}

    def optimize(self, kind: str, schedule: bool) -> None:
        parameters = [*self.gated.parameters()]
        if kind == "sgd":
            made: Any = [torch.optim.SGD(parameters, self.rate, momentum=0.9)]
        elif kind == "adamw":
            made = [torch.optim.AdamW(parameters, self.rate, weight_decay=0.1)]
        else:
            vectors = [p for p in parameters if p.dim() == 1]
            groups = [{"params": [p for p in parameters if p.dim() > 1], "momentum": 0.5}]
            made = [torch.optim.SGD(groups, self.rate), torch.optim.AdamW(vectors, self.rate)]
        self.kind, self.optimizers, self.momentum = kind, made, {}
        for optimizer in made:
            optimizer.register_step_post_hook(self.stepped)  # before that of attach
        for optimizer in made:
            attach(self.gated, optimizer, **(FALL if schedule and optimizer is made[0] else {}))

    def stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Takes what a step has changed over into the shadow."""
        gated = self.gated
        places = gated.bank.positions(gated.trained.channels, gated.trained.widths)
        names = {parameter: name for name, parameter in gated.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self.take(names[parameter], parameter.detach(), places)
                for key, tensor in optimizer.state.get(parameter, {}).items():
                    if tensor.shape == parameter.shape:
                        self.take(names[parameter], tensor, places, key)

    def take(self, name: str, tensor: Tensor, places: Any, key: str | None = None) -> None:
        table, entry = (self.shadow, name) if key is None else (self.momentum, f"{key}/{name}")
        if entry not in table:
            table[entry] = torch.zeros_like(self.shadow[name])
        if name in self.gated.channels.axes:
            put(table[entry], self.gated.bank.of(name, places), tensor)
        else:
            table[entry].copy_(tensor)

    def take_statistics(self) -> None:
        trained = self.gated.trained
        places = self.gated.bank.positions(trained.channels, trained.widths)
        for name, buffer in self.gated.named_buffers():
            if name in self.shadow:
                self.take(name, buffer, places)

    # --- what a training does -------------------------------------------------------------

    @rule(count=st.integers(1, 2), clip=st.booleans(), closure=st.booleans())
    def train(self, count: int, clip: bool, closure: bool) -> None:
        """Steps, with gradients accumulated over some batches."""
        self.gated.train()
        self.losses = []
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        for _ in range(count):
            self.forward()
            self.backward()
        if clip:
            nn.utils.clip_grad_norm_(self.gated.parameters(), 0.1)
        for optimizer in self.optimizers:
            if closure:
                optimizer.step(lambda: torch.zeros(()))
            else:
                optimizer.step()

    @rule()
    def scaled_step(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.gated.train()
        self.losses = []
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.forward()
        scaler.scale(self.losses.pop()).backward()
        for optimizer in self.optimizers:
            held = (p for group in optimizer.param_groups for p in group["params"])
            if any(p.grad is not None for p in held):  # or the scaler refuses it
                scaler.step(optimizer)
        if any(p.grad is not None for p in self.gated.parameters()):
            scaler.update()

    @rule()
    def forward(self) -> None:
        self.seed += 1
        like = next(self.gated.parameters())
        if any(p.requires_grad for p in self.gated.parameters()):
            self.losses = [self.gated(batch(self.seed, like)).square().mean()]
            if self.gated.training:
                self.take_statistics()

    @precondition(lambda self: self.losses)
    @rule()
    def backward(self) -> None:
        self.losses.pop().backward()

    @rule(grad=st.booleans())
    def evaluate(self, grad: bool) -> None:
        was = self.gated.training
        self.gated.eval()
        like = next(self.gated.parameters())
        with torch.set_grad_enabled(grad):
            self.gated(batch(7, like))
        self.gated.train(was)

    @rule(mode=st.booleans())
    def set_mode_by_attribute(self, mode: bool) -> None:
        for module in self.gated.modules():
            module.training = mode

    @rule(mode=st.booleans())
    def set_mode(self, mode: bool) -> None:
        self.gated.train(mode)

    @rule(layer=st.sampled_from(LAYERS), frozen=st.booleans())
    def freeze(self, layer: str, frozen: bool) -> None:
        self.losses = []
        for parameter in self.gated.get_submodule(layer).parameters():
            parameter.requires_grad_(not frozen)
            parameter.grad = None

    @rule(kind=st.sampled_from(OPTIMIZERS), schedule=st.booleans())
    def begin_another_optimizer(self, kind: str, schedule: bool) -> None:
        self.losses = []
        self.gated.train()
        self.gated.zero_grad()
        self.optimize(kind, schedule)

    @rule(dtype=st.sampled_from([torch.float32, torch.float64]))
    def cast(self, dtype: torch.dtype) -> None:
        """To a wider type only: a narrower one would round, and momentum with it."""
        if next(self.gated.parameters()).dtype == torch.float64 or self.saved is not None:
            return
        self.losses, self.averages = [], []
        self.gated.zero_grad()
        self.gated.to(dtype)
        for optimizer in self.optimizers:
            optimizer.load_state_dict(optimizer.state_dict())  # casts what executes
        self.shadow = {name: tensor.to(dtype) for name, tensor in self.shadow.items()}
        self.first = {name: tensor.to(dtype) for name, tensor in self.first.items()}
        self.momentum = {name: tensor.to(dtype) for name, tensor in self.momentum.items()}

    @rule()
    def save(self) -> None:
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        self.saved = copy.deepcopy(
            (self.gated.state_dict(), states, self.kind, self.shadow, self.momentum)
        )

    @precondition(lambda self: self.saved is not None)
    @rule(anew=st.booleans(), optimizers_first=st.booleans())
    def load(self, anew: bool, optimizers_first: bool) -> None:
        """Into the same network, or into a new one with new optimisers."""
        assert self.saved is not None
        network, states, kind, shadow, momentum = copy.deepcopy(self.saved)
        self.losses = []
        mode = self.gated.training
        dtype = next(self.gated.parameters()).dtype
        if anew:
            self.gated, self.averages = self.made().to(dtype), []
            self.gated.train(mode)
        self.gated.zero_grad()
        if anew or kind != self.kind:
            self.optimize(kind, False)

        def load_optimizers() -> None:
            for optimizer, state in zip(self.optimizers, states, strict=True):
                optimizer.load_state_dict(state)

        if optimizers_first:
            load_optimizers()
        self.gated.load_state_dict(network)
        if not optimizers_first:
            load_optimizers()
        self.averages = []
        self.shadow, self.momentum = shadow, momentum

    @rule()
    def average(self) -> None:
        self.averages = [copy.deepcopy(self.gated), *self.averages][:2]

    @precondition(lambda self: self.averages and self.at_rate_0)
    @rule()
    def update_averages(self) -> None:
        with torch.no_grad():
            for average in self.averages:
                for mean, value in zip(average.parameters(), self.gated.parameters(), strict=True):
                    mean.lerp_(value, 0.25)

    # --- what holds after each ------------------------------------------------------------

    @invariant()
    def channels_have_their_own_values(self) -> None:
        found = self.dense()
        assert [k for k, v in self.shadow.items() if not torch.equal(v, found[k])] == []
        for optimizer in self.optimizers:
            optimizer.state_dict()  # brings a loaded state in order
            for key, tensor in moments(self.gated, optimizer).items():
                wanted = self.momentum.get(key)
                assert wanted is not None, key
                assert torch.equal(tensor, wanted), key

    @invariant()
    def nothing_is_learnt_at_rate_0(self) -> None:
        names = [name for name, _ in self.gated.named_parameters()]
        if not self.at_rate_0:
            return
        assert [n for n in names if not torch.equal(self.shadow[n], self.first[n])] == []
        for average in self.averages:
            dense = average.dense_state_dict()
            assert [n for n in names if not torch.equal(dense[n], self.first[n])] == []

    @invariant()
    def the_law(self) -> None:
        was = [module.training for module in self.gated.modules()]
        self.gated.eval()
        x = batch(3, next(self.gated.parameters()))
        with torch.no_grad():
            found = self.gated(x)
            reference = zeroed(model().to(x.dtype), self.gated, self.gated.best()).eval()
            assert gap(reference(x), found) < (1e-4 if x.dtype == torch.float32 else 1e-12)
        for module, mode in zip(self.gated.modules(), was, strict=True):
            module.training = mode

    def teardown(self) -> None:
        if hasattr(self, "gated"):
            x = batch(3, next(self.gated.parameters()))
            self.gated.eval()
            with torch.no_grad():
                assert gap(shrink(self.gated)(x), self.gated(x)) < 1e-5


def check(sequences: int, actions: int) -> None:
    """Runs random sequences of random actions."""
    run_state_machine_as_test(
        Training,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=actions,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            phases=[Phase.generate],  # shrinking runs each sequence hundreds of times
            database=None,
            report_multiple_bugs=False,
        ),
    )


def test_some_sequences() -> None:
    check(sequences=4, actions=12)


@pytest.mark.slow
def test_many_sequences() -> None:
    check(sequences=200, actions=30)
