"""One training loop for every arm of the trained starts; what it spends is counted to the step.

The unit is the *dense epoch*: the macs of the forward and backward pass of the dense network over
all training images. A training step of a network with a share s of the dense macs, on b of n
images, costs s * b / n; backward passes cost twice the forward one, so a forward pass alone (of a
teacher, or to measure activations) costs a third of that.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pause
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.data.splits import Batch, TensorSplit, crop_and_flip

FORWARD = 1 / 3
BATCH = 128
precision = torch.bfloat16
"""Of the forward passes; torch.float32 where a processor computes bfloat16 by software, as those
without AVX-512 do (on one of them a step takes nine times as long)."""
TEMPERATURE, SOFT = 4.0, 0.9  # as in the usual comparison of distillations, arXiv 1910.10699


@dataclass(frozen=True)
class Plan:
    """What a training may spend, and how.

    Attributes:
        lr: the learning rate at the first step; a cosine takes it to 0.
        spend: dense epochs, all that was spent before the first step taken off.
        seed: of the order and the augmentation.
        schedule: of a gated network's budget.
        settle: share of the steps after which a gated network keeps its selection.
        views: how many augmented views of each image the teacher answers for beforehand; the
            training then takes these in turn. 0 asks it in every step.
        weight_decay: L2, on all parameters.
    """

    lr: float
    spend: float
    seed: int = 0
    schedule: str = "cubic{begin=0.01,end=0.1}"
    settle: float = 0.5
    views: int = 1
    weight_decay: float = 5e-4


@dataclass(frozen=True)
class Spent:
    """What a training came to."""

    dense_epochs: float
    steps: int
    epochs: float


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, classes], float32, with the forward pass in `precision` and NHWC."""
    images = images.contiguous(memory_format=torch.channels_last)
    lower = precision != torch.float32
    with torch.autocast(images.device.type, precision if lower else None, enabled=lower):
        logits: Tensor = model(images)
    return logits.float()


@torch.no_grad()
def accuracy(model: nn.Module, split: TensorSplit) -> float:
    """Share of a split that is right, in evaluation mode, which it is left in."""
    model.eval()
    right = 0
    for images, labels in split.batches(500):
        pause.wait()
        right += int((logits_of(model, images).argmax(1) == labels).sum())
    return right / len(split)


def batches(split: TensorSplit, seed: int, size: int = BATCH) -> Iterator[Batch]:
    """Augmented batches of one epoch after another, without end."""
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        yield from split.batches(size, shuffle=generator, augment=True)
        epoch += 1


Taught = tuple[Tensor, Tensor, Tensor | None]


def untaught(source: Iterator[Batch]) -> Iterator[Taught]:
    """Batches without a teacher's logits."""
    for images, labels in source:
        yield images, labels, None


@torch.no_grad()
def taught(split: TensorSplit, teacher: nn.Module, views: int, seed: int) -> Iterator[Taught]:
    """Batches with the teacher's logits, which were worked out once for some views of each image.

    Yields:
        Images [B, C, H, W], labels [B] and the teacher's logits [B, classes], of one view after
        another, shuffled anew in each epoch.
    """
    teacher.eval()
    known: list[tuple[Tensor, Tensor]] = []
    for view in range(views):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + 500_000 + view)
        images = crop_and_flip(split.images, split.pad, split.flip, generator)
        answers = []
        for part in images.split(500):
            pause.wait()
            answers.append(logits_of(teacher, split.normalise(part)))
        known.append((images, torch.cat(answers)))
    epoch = 0
    while True:
        images, answers_of = known[epoch % views]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(split), generator=generator)
        for index in order[: len(split) // BATCH * BATCH].split(BATCH):
            yield split.normalise(images[index]), split.labels[index], answers_of[index]
        epoch += 1


def loss_of(logits: Tensor, labels: Tensor, answers: Tensor | None) -> Tensor:
    """Cross-entropy, or a tenth of it and the distance to the teacher's softened answers.

    Hinton, Vinyals and Dean, arXiv 1503.02531: T^2 KL(teacher / T || student / T).
    """
    hard = functional.cross_entropy(logits, labels)
    if answers is None:
        return hard
    soft = functional.kl_div(
        functional.log_softmax(logits / TEMPERATURE, 1),
        functional.log_softmax(answers / TEMPERATURE, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - SOFT) * hard + SOFT * TEMPERATURE**2 * soft


def tune(
    model: nn.Module,
    share: float,
    split: TensorSplit,
    plan: Plan,
    teacher: nn.Module | None = None,
    tell: Callable[[str], None] = print,
) -> Spent:
    """Trains in place for as many steps as the plan can pay.

    Args:
        model: a plain network, or a gated one, which falls to its budget as the plan says and is
            settled at the end.
        share: the macs of a plain network, or of a gated one at its budget, as a share of dense.
        split: the training images.
        plan: how.
        teacher: the dense network, whose logits are learned too; None for labels alone.
        tell: takes a line of progress now and then.

    Returns:
        What was spent.
    """
    step_cost = BATCH / len(split)
    spent = plan.views * FORWARD if teacher is not None else 0.0
    gated = model if isinstance(model, fxprune.GatedModule) else None
    steps = _steps(plan, share, plan.spend - spent, step_cost, gated)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=plan.lr, momentum=0.9, weight_decay=plan.weight_decay
    )
    if gated is not None:
        fxprune.attach(gated, optimizer, schedule=plan.schedule, steps=steps)
    source = untaught(batches(split, plan.seed))
    if teacher is not None:
        source = taught(split, teacher, plan.views, plan.seed)
    model.train()
    right = 0
    torch.manual_seed(plan.seed)
    for step, (images, labels, answers) in zip(range(steps), source, strict=False):
        pause.wait()
        for group in optimizer.param_groups:
            group["lr"] = plan.lr * (1 + math.cos(math.pi * step / steps)) / 2
        if gated is not None and not gated.settled and step >= plan.settle * steps:
            gated.settle()
        optimizer.zero_grad(set_to_none=True)
        if gated is not None:
            share = gated.cost.macs(gated.widths) / gated.cost.dense_macs
        logits = logits_of(model, images)
        loss_of(logits, labels, answers).backward()
        optimizer.step()
        spent += share * step_cost
        right += int((logits.argmax(1) == labels).sum())
        if (step + 1) % 352 == 0:
            tell(f"step {step + 1}/{steps} spent {spent:.2f} right {right / 352 / BATCH:.4f}")
            right = 0
    if gated is not None and not gated.settled:
        gated.settle()
    model.eval()
    return Spent(spent, steps, steps * step_cost)


def _steps(
    plan: Plan, share: float, spend: float, step_cost: float, gated: fxprune.GatedModule | None
) -> int:
    """The steps that can be paid, with a gated network's fall."""
    if gated is None:
        return max(int(spend / (share * step_cost)), 0)
    from fxprune.budget.schedule import parse

    low, high = 1, int(spend / (share * step_cost)) + 1
    warmup = gated.settings.policy.warmup
    while high - low > 1:
        middle = (low + high) // 2
        pace = parse(plan.schedule).plan(share, middle)
        cost = sum(1.0 if step < warmup else pace.share(step) for step in range(middle))
        low, high = (middle, high) if cost * step_cost <= spend else (low, middle)
    return low
