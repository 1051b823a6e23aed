"""Plans: the settings with which a network was instrumented, kept with its state."""

import dataclasses
import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fxprune import registry
from fxprune.api import instrument
from fxprune.budget.budget import Budget
from fxprune.channels.graph import ChannelGraph
from fxprune.errors import FxpruneWarning, OptionError, RunError, UnknownNameError
from fxprune.files import damaged
from fxprune.formats import fitting
from fxprune.gated.module import GatedModule
from fxprune.runs import calls
from fxprune.runs.operations import computes_something_else, operations
from fxprune.runs.schema import Strict

MOST_ELEMENTS = 2**28
"""Of an example input; a damaged plan must not fill the memory."""

MOST_NUMBERS = 2**16
"""Of an example input whose values are all written; of larger ones, such as the masks of large
images, `SOME` are, which come back over and over."""

SOME = 2**8

Text = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
LongText = Annotated[str, Field(max_length=2**16, pattern=r"^[^\x00]*$")]
"""Of a budget: it may have widths and limits of some hundred groups."""

Size = Annotated[int, Field(ge=1, le=MOST_ELEMENTS)]
Numbers = Annotated[tuple[int, ...], Field(max_length=MOST_NUMBERS)]


def fingerprint(channels: ChannelGraph) -> str:
    """Identify the channel groups of a network: sizes, members, and the parameters' shapes."""
    digest = hashlib.sha256()
    for group in channels.groups:
        digest.update(f"\n{group.size}".encode())
        for member in group.members:
            digest.update(f" {member.parameter} {member.dim} ".encode())
            digest.update(member.positions.contiguous().numpy().tobytes())
    digest.update(str(sorted((name, tuple(s)) for name, s in channels.shapes.items())).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Plan(Strict):
    """The settings with which a network was instrumented: enough to do it again.

    Attributes:
        inputs: shape and dtype of each example input, such as ((2, 3, 32, 32), "float32").
        policy: in its text form.
        budget: in its text form.
        round_to: widths are multiples of this; see `Budget`.
        every: steps between two selections.
        seed: for policies that draw.
        fingerprint: of the channel groups; another network has another.
        torch: the version that wrote it.
        call: how the inputs are handed over, see `fxprune.runs.calls`; None for one by one.
        operations: what the network computes; None in files of older versions.
        numbers: the values of each example input of whole numbers or truth values, which may
            decide the shapes in a forward (lengths, masks), and some of those of a large one;
            None for others, and for large ones in files of older versions.
    """

    inputs: Annotated[tuple[tuple[tuple[Size, ...], Text], ...], Field(min_length=1, max_length=64)]
    policy: Text
    budget: LongText
    round_to: Annotated[int, Field(ge=1, le=2**31)] | None
    every: Annotated[int, Field(ge=1, le=2**62)]
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    fingerprint: Text
    torch: Text = dataclasses.field(compare=False)
    call: LongText | None = None
    operations: Text | None = dataclasses.field(default=None, compare=False)
    numbers: Annotated[tuple[Numbers | None, ...] | None, Field(max_length=64)] = dataclasses.field(
        default=None, compare=False
    )

    @staticmethod
    def of(gated: GatedModule) -> "Plan":
        """Make the plan of a gated network."""
        settings = gated.settings
        return Plan(
            inputs=tuple((tuple(x.shape), _name(x.dtype)) for x in gated.inputs),
            policy=registry.to_text(settings.policy),
            budget=str(settings.budget),
            round_to=settings.budget.round_to,
            every=settings.every,
            seed=settings.seed,
            fingerprint=fingerprint(gated.channels),
            torch=str(torch.__version__),
            call=calls.to_text(gated.signature),
            operations=operations(gated),
            numbers=tuple(map(_numbers, gated.inputs)),
        )

    @staticmethod
    def from_json(value: Any, path: Path) -> "Plan":
        """Check what `dataclasses.asdict` became in JSON; `path` is for the message.

        Raises:
            RunError: a field is missing, unknown, of another kind or out of its range.
        """
        return fitting(Plan, value, path, "plan")

    def instrument(self, model: nn.Module, path: Path) -> GatedModule:
        """Instrument a model again by the plan; `path` is for the message.

        Raises:
            RunError: the model has other channel groups, or the plan names what is not known.

        Warns:
            FxpruneWarning: the model computes something else.
        """
        try:
            numbers = self.numbers or (None,) * len(self.inputs)
            if len(numbers) != len(self.inputs):
                raise OptionError("it has numbers of other inputs")
            tensors = [_input(*form, held) for form, held in zip(self.inputs, numbers)]
            args, kwargs = calls.from_text(self.call, tensors)
            gated = instrument(
                model,
                args,
                self.policy,
                Budget.parse(self.budget, self.round_to),
                every=self.every,
                seed=self.seed,
                example_kwargs=kwargs,
            )
        except UnknownNameError as error:
            raise RunError(
                f"{path} names what this fxprune does not know: {error.what}",
                why="it is damaged, of a newer version, or has a policy of somebody's own",
                do="import the code that defines the policy first (in a run: the SPEC's code does)",
            ) from error
        except OptionError as error:
            raise damaged(path, str(error), "its plan") from error
        if fingerprint(gated.channels) != self.fingerprint:
            raise RunError(
                f"{path} belongs to another network",
                why="the channel groups of this model are others",
                do="give the model that was instrumented",
            )
        if computes_something_else(self.operations, gated):
            warnings.warn(
                f"{path} was made of a network that computes something else: an operation, or an "
                "option of one, is not what it was (the model's code or its library has changed); "
                "what is loaded was not trained for it",
                FxpruneWarning,
                stacklevel=2,
            )
        return gated


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _numbers(tensor: Tensor) -> tuple[int, ...] | None:
    if tensor.is_floating_point() or tensor.is_complex():
        return None
    values = tensor.flatten()
    if len(values) > MOST_NUMBERS:
        anywhere = torch.Generator("cpu").manual_seed(0)  # each n-th might be of one column
        values = values[torch.randint(len(values), (SOME,), generator=anywhere, device="cpu")]
    return tuple(map(int, values.tolist()))


def _input(shape: tuple[int, ...], dtype: str, numbers: tuple[int, ...] | None) -> Tensor:
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype) or math.prod(shape) > MOST_ELEMENTS:
        raise OptionError(f"no input is {dtype} of shape {shape}")
    try:
        if numbers is None:
            return torch.zeros(shape, dtype=kind, device="cpu")
        values, count = torch.tensor(numbers, dtype=kind, device="cpu"), math.prod(shape)
        if count > MOST_NUMBERS:
            values = values.repeat(math.ceil(count / max(len(values), 1)))[:count]
        return values.reshape(shape)
    except (RuntimeError, NotImplementedError, ValueError, OverflowError) as error:
        # of quantised dtypes, out of memory, or of other numbers than such an input can hold
        raise OptionError(f"no input can be {dtype} of shape {shape}") from error
