"""What a policy is: state, an observation for the channels that executed, a score for all.

A policy never sees the network. All channels of all groups are numbered in one row (see
`fxprune.channels.graph`); its state is a few tensors over that row, and every step is a few tensor
operations on it, without a wait for the device.

Letters: N channels in all, K of them executed, G groups.
"""

import abc
from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from fxprune.channels.graph import Layout
from fxprune.errors import OptionError
from fxprune.policies.scale import per_group_max

Observes = Literal["batch", "sample", "magnitude", "bn_scale", "none"]
Taylor = Literal["batch", "sample"]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Policy(abc.ABC):
    """Base of the policies. Subclasses are frozen dataclasses whose fields are their options.

    Every state has `prior`, float32 [N] in [0, 1], the weight magnitude as a share of the
    group's largest, which ranks channels that were never observed; and `seen`, bool [N], the
    channels that were ever observed.
    """

    keys: ClassVar[tuple[Hashable, ...]]

    @property
    @abc.abstractmethod
    def observes(self) -> Observes:
        """What is measured of the executed channels in each step.

        `batch`: Taylor saliency summed over the batch before the absolute value, which is free;
        `sample`: its mean over the samples' absolute values; `magnitude`: the weights' norm;
        `bn_scale`: the absolute scale of the norm; `none`: nothing, all zeros are handed in.
        """

    @property
    def warmup(self) -> int:
        """Steps at the start in which all channels execute."""
        return 0

    @property
    def reallocate(self) -> int:
        """Steps between global allocations of the widths; 0 for uniform widths that stay."""
        return 0

    @property
    def falls(self) -> bool:
        """Whether a training does best to begin with all channels and to fall to its budget."""
        return True

    def start(self, layout: Layout, prior: Tensor, seed: int) -> State:
        """Make the state before the first step.

        Args:
            layout: the channel groups.
            prior: float32 [N] >= 0, the weight magnitude of each channel; the state lives on its
                device.
            seed: for policies that draw; the others ignore it.

        Returns:
            Tensors by name.
        """
        del seed
        every = torch.arange(layout.total, device=prior.device)
        scaled, _ = per_group_max(prior, every, layout)
        return {"prior": scaled, "seen": torch.zeros_like(scaled, dtype=torch.bool)}

    @abc.abstractmethod
    def observe(self, state: State, layout: Layout, selection: Tensor, saliency: Tensor) -> None:
        """Update the state in place with one step's measurement.

        Args:
            state: what `start` returned.
            layout: the channel groups.
            selection: int64 [K], the channels that executed, each once.
            saliency: float [K] >= 0, in any unit that is the same for all, of a Taylor saliency
                that of the loss. A channel whose value is not finite is treated as not executed.
        """

    @abc.abstractmethod
    def score(self, state: State, layout: Layout, explore: bool) -> Tensor:
        """Return the scores by which the selection ranks channels.

        Args:
            state: the state; it is not changed.
            layout: the channel groups.
            explore: whether channels that were seldom observed may get a bonus. False for the
                scores by which export chooses: channels that were never observed then rank below
                all others, by their prior.

        Returns:
            Finite float32 [N].
        """

    def milestone(self, state: State) -> None:  # noqa: B027 - most policies do not mind
        """Take note, in the state, that the learning rate was cut."""


def mark_seen(state: State, selection: Tensor, valid: Tensor) -> None:
    """Add the channels `selection` [K] to the seen ones where `valid`, bool [K], holds."""
    seen = state["seen"]
    seen.index_copy_(0, selection, seen[selection] | valid)


def unseen_first(score: Tensor, state: State) -> Tensor:
    """Lift the never observed channels above all others, by prior; float [N] >= 0 -> [N]."""
    known = torch.where(state["seen"], score, 0.0)
    above = known.amax() + 1 if known.numel() else known.sum()
    return torch.where(state["seen"], score, above + state["prior"])


def unseen_last(score: Tensor, state: State) -> Tensor:
    """Put the never observed channels below all others, by prior; float [N] >= 0 -> [N]."""
    return torch.where(state["seen"], score, state["prior"] - 2)


def check_range(policy: Policy, option: str, low: float, high: float) -> None:
    """Check that an option's value lies in [low, high].

    Raises:
        OptionError: it does not, or is not a number.
    """
    value = getattr(policy, option)
    if not low <= value <= high:  # refuses nan too
        raise OptionError(
            f"option {option!r} of the policy {policy.keys[0]!r} cannot be {value}",
            do=f"give a value of at least {low:g}"
            + (f" and at most {high:g}" if high < 1e9 else ""),
        )


def check_choice(policy: Policy, option: str, choices: object) -> None:
    """Check that an option's value is one of the Literal `choices`.

    Raises:
        OptionError: the value is another one.
    """
    value = getattr(policy, option)
    if value not in get_args(choices):
        raise OptionError(
            f"option {option!r} of the policy {policy.keys[0]!r} cannot be {value!r}",
            do=f"give one of {', '.join(get_args(choices))}",
        )
