"""The task of a network: the loss that is minimised, and the metric that is reported.

Both get what the network returns, as it returns it, and the target of the batch. Without ones of
the user's own they are the cross-entropy of logits, and the share of right answers: of classes
[B] from logits [B, classes], or of each pixel's class [B, H, W] from logits [B, classes, H, W].
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree
from typing_extensions import TypeIs

from fxprune.errors import DataError, ModelError, OptionError, described
from fxprune.user_lines import own_line, user_line

IGNORED = -100
"""The label that counts for nothing, as in torch's cross_entropy."""

Loss = Callable[[Any, Any], Tensor]


class Accumulating(Protocol):
    """A metric that is computed from all batches, as those of torchmetrics are."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Take a batch in."""

    def compute(self) -> Any:
        """Return the metric of all batches so far: one number."""

    def reset(self) -> None:
        """Forget them."""


Metric = Callable[[Any, Any], Any] | Accumulating


@dataclass(frozen=True)
class Task:
    """A loss and a metric.

    Attributes:
        loss: from outputs and targets to a scalar, the mean over the examples; None for the
            cross-entropy.
        metric: from outputs and targets to a number, the mean over the examples, higher is better;
            or an object with `update`, `compute` and `reset`. None for the share of right answers,
            where targets are classes.
    """

    loss: Loss | None = None
    metric: Metric | None = None

    def __post_init__(self) -> None:
        """Check that they can be called."""
        for word, value in (("loss", self.loss), ("metric", self.metric)):
            if isinstance(value, type):
                raise OptionError(
                    f"the {word} is {described(value)}",
                    do=f"give an object of it: {name_of(value)}()",
                )
            if value is not None and not callable(value) and not _accumulates(value):
                raise OptionError(
                    f"the {word} is {described(value)}",
                    why="it is called with what the network returns, and the target",
                    do="give a function, or an object of a class with __call__",
                )

    def minimised(self, outputs: Any, targets: Any, smoothing: float = 0.0) -> Tensor:
        """Compute the loss of a batch, a scalar.

        Raises:
            ModelError: the network returns something else than the one tensor that cross-entropy
                takes.
            DataError: the loss does not take what the network returns and the targets, is no
                scalar, or has no gradient where gradients are recorded.
        """
        if self.loss is None:
            logits = one_tensor(outputs)
        try:
            if self.loss is None:
                loss: Any = functional.cross_entropy(logits, targets, label_smoothing=smoothing)
            else:
                loss = self.loss(outputs, targets)
        except Exception as error:
            raise DataError(
                "the loss does not take what the network returns and the targets",
                at=user_line(error) if self.loss else "",
                why=f"{_first_line(error)}; the network returns {shapes(outputs)}, the targets are "
                f"{shapes(targets)}",
                do=self._advice(error),
            ) from error
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            raise DataError(
                f"the loss {name_of(self.loss)} is no scalar: it returns {shapes(loss)}",
                do="return the mean over the examples, a floating tensor of no dimensions",
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise DataError(
                f"the loss {name_of(self.loss)} has no gradient",
                why="it is detached from what the network returns, or all parameters are frozen",
                do="compute it from the outputs, without detach, item or no_grad",
            )
        return loss

    def _advice(self, error: Exception) -> str:
        """Say what to do about an error of the loss."""
        if self.loss is None:
            return (
                "give targets of the size of the outputs: numbers of classes, int64, from 0 up, "
                "below the number of outputs; or a loss of your own (--loss, loss=)"
            )
        if own_line(error):
            return "correct the line that is named"
        return "give a function of what the network returns and the targets, in this order"

    def check_metric(self, outputs: Any, targets: Any) -> None:
        """Refuse a metric that does not take a batch, or gives no number.

        What it raises of values, such as too few examples of a class, is no fault of its code.

        Raises:
            DataError: it is called wrongly, or returns something else.
        """
        metric = self.metric
        if metric is None:
            return
        try:
            with _measuring(metric, _FAULTS):
                if _accumulates(metric):
                    metric.update(outputs, targets)
                else:
                    _number(metric, metric(outputs, targets), torch.device("cpu"))
        except DataError:
            raise
        except Exception:  # of values
            return
        finally:
            _reset(metric)

    def right(self, outputs: Any, targets: Any) -> Tensor:
        """Count the right examples of a batch, int64 []; 0 where they do not have one class."""
        own = self.metric is not None or not isinstance(outputs, Tensor)
        if own or not isinstance(targets, Tensor) or outputs.dim() != 2:
            return torch.zeros((), dtype=torch.int64)
        labels = targets.argmax(1) if targets.shape == outputs.shape else targets
        right: Tensor = (outputs.detach().argmax(1) == labels).sum()
        return right


CLASSIFY = Task()


@dataclass(frozen=True)
class Scores:
    """What a network scores on some batches.

    Attributes:
        loss: mean over the examples.
        accuracy: share of right answers; None where the targets are no classes, or the task has a
            metric of its own.
        top5: share of examples whose class is among the five likeliest; None for fewer than
            six classes, and likewise.
        metric: value of the task's own metric; None where there is none, or it is not finite.
        labelled: whether each example has one class.
    """

    loss: float
    accuracy: float | None
    top5: float | None = None
    metric: float | None = None
    labelled: bool = False


_FAULTS = (TypeError, AttributeError, KeyError, NameError)
"""What is raised by code that is wrong whatever the values are."""


@contextlib.contextmanager
def _measuring(metric: Metric, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Turn an error of these kinds that a metric raises into one that names the metric."""
    try:
        yield
    except kinds as error:
        raise _no_number(metric, _first_line(error), at=user_line(error)) from error


def _reset(metric: Metric | None) -> None:
    """Reset a metric that is computed from several batches."""
    if metric is not None and _accumulates(metric):
        with _measuring(metric):
            metric.reset()


def _number(metric: Metric, value: Any, device: torch.device) -> Tensor:
    """Return what a metric returned as a scalar."""
    try:
        return torch.as_tensor(value, device=device).reshape(())
    except (RuntimeError, ValueError, TypeError) as error:
        raise _no_number(metric, f"it returns {shapes(value)}") from error


def _no_number(metric: Metric, why: str, at: str = "") -> DataError:
    return DataError(
        f"the metric {name_of(metric)} raises, or returns no number",
        at=at,
        why=why,
        do="take what the network returns and the targets, and return a number",
    )


class ScoreSums:
    """Adds up the loss and the metric of batches, without making a GPU wait for its host."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # examples, loss, metric, 5
        self.classes = self.many_classes = self.labelled = False
        if isinstance(task.metric, nn.Module):
            task.metric.to(device)
        _reset(task.metric)

    @torch.no_grad()
    def add(self, outputs: Any, targets: Any, loss: Tensor, examples: int) -> None:
        """Take a batch in; `loss` is its mean, a scalar."""
        metric = self.task.metric
        sums = [torch.full_like(loss, examples), examples * loss.double()]
        if metric is None:
            sums += self._right(outputs, targets, examples)
        elif _accumulates(metric):
            with _measuring(metric):
                metric.update(outputs, targets)
        else:
            with _measuring(metric):
                value = metric(outputs, targets)
            sums.append(examples * _number(metric, value, loss.device))
        for at, figure in enumerate(sums):
            self.sums[at] += figure.detach().double()

    def _right(self, outputs: Any, targets: Any, examples: int) -> list[Tensor]:
        """Count the right examples, and those right among the first five; empty if not classes."""
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor) and outputs.dim() > 1):
            return []
        labels, own = targets, self.task.loss is not None
        if targets.is_floating_point() and targets.shape == outputs.shape and not own:
            labels = targets.argmax(1)  # shares of classes, as cross-entropy takes them
        if labels.is_floating_point() or labels.shape != outputs[:, 0].shape:
            return []
        self.classes, self.labelled = True, labels.dim() == 1
        counts = labels != IGNORED
        number = counts.sum().clamp(min=1)
        found = [((outputs.argmax(1) == labels) & counts).sum()]
        if outputs.shape[1] > 5:
            self.many_classes = True
            five = (outputs.topk(5, 1).indices == labels.unsqueeze(1)).any(1)
            found.append((five & counts).sum())
        return [right.double() * examples / number for right in found]

    def scores(self, sums: Tensor) -> Scores:
        """Average what was added up, `sums`, over all processes."""
        examples, loss, metric, top5 = sums.tolist()
        own = self.task.metric
        if own is not None:
            with _measuring(own):
                value = float(own.compute()) if _accumulates(own) else metric / examples
            return Scores(loss / examples, None, metric=value if math.isfinite(value) else None)
        return Scores(
            loss / examples,
            metric / examples if self.classes else None,
            top5 / examples if self.many_classes else None,
            labelled=self.labelled,
        )


def _accumulates(metric: Any) -> TypeIs[Accumulating]:
    """Tell whether a metric is an object that takes batches in."""
    return all(hasattr(metric, word) for word in ("update", "compute", "reset"))


def one_tensor(outputs: Any, training: bool = True) -> Tensor:
    """Return the logits of a network.

    Raises:
        ModelError: it returns something else than one tensor.
    """
    if isinstance(outputs, Tensor):
        return outputs
    raise ModelError(
        f"the network returns {described(outputs)}" + (" in training" if training else ""),
        why="the built-in trainer minimises the cross-entropy of one tensor of logits",
        do="make forward return that tensor alone, give a loss of your own (--loss, loss=), or "
        "train in a loop of your own",
    )


def call(network: nn.Module, inputs: Any) -> Any:
    """Call a network with the inputs of a batch: a tensor, a tuple, or a dict of keywords."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, tuple | list) else network(inputs)


def examples_of(inputs: Any) -> int:
    """Return the number of examples of a batch: the length of its first tensor."""
    return len(next(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)))


def shapes(value: Any) -> str:
    """Describe what a value holds, by kinds and shapes, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shapes(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list) and value:
        return f"({', '.join(shapes(item) for item in value[:4])})"
    return f"{described(value)}"


def name_of(value: Any) -> str:
    """Return the name of a function, or of an object's class."""
    return str(getattr(value, "__name__", type(value).__name__))


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).splitlines()), "")
    return (
        line if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {line}"
    )
