"""Selection: what a policy and a budget choose for one network, whose tensors they do not see.

Letters: N channels in all, K of them chosen.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from fxprune.bank.exchange import Selection
from fxprune.budget.budget import Budget
from fxprune.budget.widths import global_widths, uniform_widths
from fxprune.channels.cost import CostModel
from fxprune.channels.graph import Layout, Widths
from fxprune.errors import BudgetError, GateError, OptionError, brief, described
from fxprune.policies import Policy, keep_slots, top
from fxprune.policies.base import Observes
from fxprune.registry import running


@dataclass(frozen=True)
class Settings:
    """How channels are chosen.

    Attributes:
        policy: ranks the channels.
        budget: how much may execute.
        every: optimiser steps between two selections.
        seed: for policies that draw.
    """

    policy: Policy
    budget: Budget
    every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the policy says of itself."""
        policy: Any = self.policy
        if policy.observes not in get_args(Observes):
            raise OptionError(
                f"the policy {policy.keys[0]!r} observes {brief(policy.observes)}",
                do=f"let the property return one of {', '.join(get_args(Observes))}",
            )
        for name in ("warmup", "reallocate"):
            steps = getattr(policy, name)
            if not isinstance(steps, int) or steps < 0:
                raise OptionError(
                    f"{name} of the policy {policy.keys[0]!r} is {brief(steps)}",
                    do="give a number of steps, 0 or more",
                )

    @property
    def reallocate(self) -> int:
        """Steps between global allocations of the widths; 0 where the widths stay.

        A latency budget has the widths that were measured, whatever the policy would give.
        """
        return 0 if self.budget.kind == "latency" else self.policy.reallocate


class Selector:
    """The state of a network's policy, and the selections that follow from it.

    Attributes:
        state: the policy's tensors.
        steps: how many optimiser steps were observed.
        peak_rate: the highest learning rate since the last cut; 0 before the first step.
        share: of the dense network that executes in training; the budget's, or more.
    """

    def __init__(self, settings: Settings, layout: Layout, cost: CostModel, prior: Tensor) -> None:
        """Start the policy.

        Args:
            settings: the policy, the budget, and how often to select.
            layout: the channel groups.
            cost: macs and params as a function of the widths.
            prior: float32 [N] >= 0, the weight magnitude of each channel.

        Raises:
            BudgetError: no widths meet the budget.
        """
        self._settings, self._layout, self._cost = settings, layout, cost
        self._uniform = uniform_widths(settings.budget, layout, cost)
        with self._running("start") as policy:
            self.state = policy.start(layout, prior, settings.seed)
        self._check_state()
        self.steps, self.peak_rate = 0, 0.0
        self.share = settings.budget.value
        if settings.reallocate:  # refuses now, not after hours, what floors make impossible
            global_widths(settings.budget, layout, cost, prior)

    def first(self) -> Selection:
        """Return the selection of the first step: all channels where the policy wants a warm-up."""
        widths = self._layout.sizes if self._settings.policy.warmup else self._uniform
        return Selection(self._top(widths, explore=True).sort().values, widths)

    def check(self, chosen: Selection) -> None:
        """Refuse a selection that does not fit.

        Raises:
            GateError: it is no selection, the widths do not fit the groups, or the selection not
                its widths.
        """
        given: Any = chosen  # a caller may have no types
        if not isinstance(given, Selection):
            raise GateError(
                f"cannot select {described(given)}",
                do="give a fxprune.bank.exchange.Selection, such as gated.best()",
            )
        self._cost.macs(chosen.widths)  # refuses widths that do not fit
        if not chosen.fits(self._layout):
            raise GateError(
                "a selection does not fit the channel groups",
                why=f"by its widths {chosen.widths} it names as many channels of each group, group "
                "after group",
                do="number the channels as gated.channels.layout does",
            )
        times = torch.bincount(chosen.channels, minlength=self._layout.total)
        if times.max() > 1:
            raise GateError(
                "a selection names a channel twice",
                why=f"channel {int(times.argmax())} has one slot at most",
                do="name each channel once",
            )

    def note_rate(self, rate: float) -> None:
        """Show cuts of the learning rate to the policy.

        A cut is a rate of at most half of the highest one since the last cut.
        """
        if self.peak_rate > 0 and rate <= self.peak_rate / 2:
            with self._running("milestone") as policy:
                policy.milestone(self.state)
            self.peak_rate = rate
        self.peak_rate = max(self.peak_rate, rate)

    def observe(self, executing: Tensor, saliency: Tensor) -> None:
        """Show the saliencies, float32 [K], of the channels that executed, int64 [K]."""
        with self._running("observe") as policy:
            policy.observe(self.state, self._layout, executing, saliency)

    def following(self, trained: Selection) -> Selection | None:
        """Return the selection after the step just taken, or None if it stays the same.

        Args:
            trained: the current selection; channels that stay keep their slots.
        """
        reallocate, widths = self._settings.reallocate, trained.widths
        since = self.steps - self._settings.policy.warmup
        if since < 0:
            return None
        if since == 0 or (reallocate and self.steps % reallocate == 0):
            widths = self._allocated(self.share, explore=True)
        if widths == trained.widths and self.steps % self._settings.every > 0:
            return None
        return self._aligned(self._top(widths, explore=True), widths, trained)

    def spend(self, share: float, trained: Selection) -> Selection | None:
        """Return the selection at another share, or None if it stays the same.

        Args:
            share: of the dense network, counted as the budget counts.
            trained: as for `following`.

        Raises:
            BudgetError: the share is below the budget's, or above 1.
        """
        if share == self.share:
            return None
        budget = self._settings.budget
        if not budget.value <= share <= 1:
            raise BudgetError(
                f"a training cannot execute the share {share} of the network",
                why=f"its budget is {budget}",
                do=f"give a share from {budget.value} to 1",
            )
        self.share = share
        if self.steps < self._settings.policy.warmup:
            return None
        widths = self._allocated(share, explore=True)
        if widths == trained.widths:
            return None
        return self._aligned(self._top(widths, explore=True), widths, trained)

    def best(self, trained: Selection) -> Selection:
        """Return the selection that export would take: the whole budget, and no exploration.

        Before the first step that is the one of training, if its widths are the budget's.

        Args:
            trained: as for `following`.
        """
        if self.steps == 0 and trained.widths == self._uniform:
            return trained
        widths = self._allocated(self._settings.budget.value, explore=False)
        return self._aligned(self._top(widths, explore=False), widths, trained)

    def take_over(self, other: "Selector", device: torch.device) -> None:
        """Copy another selector's policy state to a device."""
        self.state = {key: value.to(device) for key, value in other.state.items()}
        self.steps, self.peak_rate, self.share = other.steps, other.peak_rate, other.share

    def _top(self, widths: Widths, explore: bool) -> Tensor:
        return top(self._score(explore), self._layout, widths)

    def _score(self, explore: bool) -> Tensor:
        """Ask the policy for its scores, float32 [N]."""
        with self._running("score") as policy:
            score: Any = policy.score(self.state, self._layout, explore)
        self._require("score() returns", score, torch.float32)
        found: Tensor = score
        return found

    def _check_state(self) -> None:
        """Refuse a state that is not what `Policy.start` has to return."""
        state: Any = self.state
        if not isinstance(state, dict):
            raise self._refused(f"start() returns {described(state)}", "a dict of tensors")
        for name, kind in (("prior", torch.float32), ("seen", torch.bool)):
            self._require(f"the state has as {name}", state.get(name), kind)
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise self._refused(f"the state has as {name} {described(value)}", "a tensor")

    def _require(self, what: str, value: Any, kind: torch.dtype) -> None:
        """Refuse a value that is no tensor of this type with one number for each channel."""
        size = (self._layout.total,)
        if isinstance(value, Tensor) and (value.dtype, tuple(value.shape)) == (kind, size):
            return
        given = described(value)
        if isinstance(value, Tensor):
            given = f"{value.dtype} of shape {tuple(value.shape)}"
        raise self._refused(f"{what} {given}", f"a tensor, {kind} of shape {size}")

    def _refused(self, what: str, wanted: str) -> OptionError:
        return OptionError(
            f"the policy {self._settings.policy.keys[0]!r}: {what}", do=f"return {wanted}"
        )

    @contextlib.contextmanager
    def _running(self, method: str) -> Iterator[Policy]:
        """Run a method of the policy; what one of the user's own raises names its line."""
        policy = self._settings.policy
        with running(policy, f"{method}() of the policy {policy.keys[0]!r}"):
            yield policy

    def _allocated(self, share: float, explore: bool) -> Widths:
        """Return the widths that spend a share: the same share of each group, or by its score."""
        layout = self._layout
        budget = self._settings.budget.at(share, layout.sizes)
        if self._settings.reallocate and self.steps > 0:
            return global_widths(budget, layout, self._cost, self._score(explore))
        if budget == self._settings.budget:
            return self._uniform
        return uniform_widths(budget, layout, self._cost)

    def _aligned(self, channels: Tensor, widths: Widths, trained: Selection) -> Selection:
        """Order channels so that those that stay keep their slots, and only others move."""
        if widths == trained.widths:
            channels = keep_slots(trained.channels, channels, self._layout, widths)
        return Selection(channels, widths)
