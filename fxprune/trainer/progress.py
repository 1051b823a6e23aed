"""The sums of an unfinished epoch, and how a checkpoint in the middle of it keeps them.

An epoch that was stopped goes on after its last step: the batches before it are drawn again and
left out, and the random state is put back. So it ends in the same bits as one that was not.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, distributed

from fxprune.data import Share
from fxprune.runs.schema import Strict

WITHIN = "within/"
"""What the names of these tensors begin with in a checkpoint."""

Count = Annotated[int, Field(ge=0, lt=2**62)]


class Stopped(Exception):  # noqa: N818 - it is asked for
    """A training that was asked to stop, and has written its checkpoint if it has a run."""


@dataclass(frozen=True)
class Within(Strict):
    """The schema of the meta of an epoch that was stopped.

    Attributes:
        step: its steps that are done, of all processes together.
        seen: examples of these.
        spent: forward macs of the run so far; None where that is not known.
        churn: exchanged shares of its steps.
        seconds: times of its steps.
    """

    step: Count
    seen: Count
    spent: Count | None
    churn: list[Annotated[float, Field(ge=0, le=1)]]
    seconds: list[Annotated[float, Field(ge=0)]]


@dataclass
class Progress:
    """The sums of an epoch so far, of one process.

    Attributes:
        loss: sum of the loss of each example, float64 [].
        right: examples that were right, int64 [].
        seen: examples.
        step: steps that are done.
        churn: exchanged shares of the steps before a pause.
        seconds: times of the steps before a pause.
        random: the state of each process's generator at the pause, uint8 [processes, ...]; before
            `keep` this process's alone.
        random_of_gpu: likewise of each process's GPU, if it has one.
        spent: forward macs of the run when the epoch was stopped.
    """

    loss: Tensor
    right: Tensor
    seen: int = 0
    step: int = 0
    churn: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    random: Tensor | None = None
    random_of_gpu: Tensor | None = None
    spent: int | None = None

    @staticmethod
    def begin(device: torch.device) -> "Progress":
        """Make an epoch without steps."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return Progress(zero, zero.to(torch.int64))

    def add(self, loss: Tensor, right: Tensor, examples: int) -> None:
        """Add a step: its mean loss, [], and how many of its examples were right, []."""
        self.loss += loss.double() * examples
        self.right += right
        self.seen += examples
        self.step += 1

    def pause(self, churn: list[float], seconds: list[float]) -> None:
        """Note what a checkpoint after the last step needs beside the sums."""
        self.churn, self.seconds = churn, seconds
        self.random = torch.get_rng_state()[None]
        if self.loss.is_cuda:
            self.random_of_gpu = torch.cuda.get_rng_state(self.loss.device)[None]

    def keep(self, share: Share, spent: int | None) -> tuple[dict[str, Tensor], Within]:
        """Collect what a checkpoint keeps of it, for all processes; each of them has to call."""
        assert self.random is not None  # there was a pause
        random = _of_all(self.random[0].to(self.loss.device), share)
        sums = [self.loss.clone(), self.right.clone(), torch.full_like(self.right, self.seen)]
        for value in sums:
            if share.of > 1:
                distributed.all_reduce(value)
        tensors = {"loss": sums[0], "right": sums[1], "random": random}
        if self.random_of_gpu is not None:
            tensors["random_of_gpu"] = _of_all(self.random_of_gpu[0].to(self.loss.device), share)
        named = {f"{WITHIN}{name}": tensor for name, tensor in tensors.items()}
        return named, Within(self.step, int(sums[2]), spent, self.churn, self.seconds)

    @staticmethod
    def read(
        tensors: Mapping[str, Tensor], within: Within, share: Share, device: torch.device
    ) -> "Progress":
        """Take what `keep` gave; the first process goes on with the sums of all.

        Raises:
            KeyError, RuntimeError: a tensor is missing, or of another kind.
        """
        first = share.rank == 0
        loss, right = tensors["loss"].to(device), tensors["right"].to(device)
        if loss.dtype != torch.float64 or right.dtype != torch.int64 or loss.dim() or right.dim():
            raise RuntimeError("the sums of an epoch are damaged")
        return Progress(
            loss if first else torch.zeros_like(loss),
            right if first else torch.zeros_like(right),
            within.seen if first else 0,
            within.step,
            list(within.churn),
            list(within.seconds),
            tensors["random"],
            tensors.get("random_of_gpu"),
            within.spent,
        )

    def put_back_random(self, share: Share) -> None:
        """Set the random state to that after the last step; rows are missing for new processes."""
        if self.random is None:
            return
        if share.rank < len(self.random):
            torch.set_rng_state(self.random[share.rank].contiguous())
        of_gpu = self.random_of_gpu
        if of_gpu is not None and self.loss.is_cuda and share.rank < len(of_gpu):
            torch.cuda.set_rng_state(of_gpu[share.rank].contiguous(), self.loss.device)


def _of_all(state: Tensor, share: Share) -> Tensor:
    if share.of == 1:
        return state[None].cpu()
    states = [torch.empty_like(state) for _ in range(share.of)]
    distributed.all_gather(states, state)
    return torch.stack(states).cpu()
