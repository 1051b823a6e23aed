"""A gated network in the training frameworks that people use: the real packages, digits' sizes.

Interrupted and resumed equals never interrupted, to the bit.
"""

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import GatedModule, attach
from tests.support.small_training import IMAGES, LABELS, attached_classifier, loader, network

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # theirs, of their own parts

FALL = "linear{begin=0.2,end=0.9}"


def assert_same(one: GatedModule, two: GatedModule) -> None:
    first, second = one.training_state(), two.training_state()
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("policy", ["random", "cucb", "utility{warmup=2,reallocate=3}"])
def test_lightning(tmp_path: Path, policy: str, schedule: bool) -> None:
    """Fits with a validation in each epoch and accumulation, and resumes from a checkpoint."""
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(policy)

        def training_step(self, batch: Any, index: int) -> Tensor:
            del index
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, index: int) -> None:
            del index
            assert not self.net.training
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(self.net.parameters(), 0.05, momentum=0.9)
            attach(self.net, optimizer, **({"schedule": FALL, "steps": 8} if schedule else {}))
            return optimizer

    def fit(epochs: int, folder: Path | None, resume: Path | None = None) -> Lit:
        lit = Lit()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, accumulate_grad_batches=2,
        )  # fmt: skip
        trainer.fit(lit, loader(), loader(), ckpt_path=resume)
        if folder is not None:
            trainer.save_checkpoint(folder)
        return lit

    whole = fit(4, None)
    fit(2, tmp_path / "half.ckpt")
    again = fit(4, None, tmp_path / "half.ckpt")
    assert whole.net.steps == again.net.steps == 8
    assert_same(whole.net, again.net)


def test_accelerate(tmp_path: Path) -> None:
    """Saves and loads its state in safetensors, through its own optimiser wrapper."""
    from accelerate import Accelerator

    def made() -> tuple[Any, GatedModule, Any]:
        accelerator = Accelerator(cpu=True)
        gated = network()
        raw = torch.optim.AdamW(gated.parameters(), 0.01)
        prepared, optimizer = accelerator.prepare(gated, raw)
        attach(prepared, optimizer)
        return accelerator, gated, optimizer

    def train(accelerator: Any, gated: GatedModule, optimizer: Any, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            part = slice(16 * (step % 4), 16 * (step % 4) + 16)
            accelerator.backward(F.cross_entropy(gated(IMAGES[part]), LABELS[part]))
            optimizer.step()

    one = made()
    train(*one, range(6))
    one[1].eval()
    one[0].save_state(str(tmp_path / "state"))
    one[1].train()
    two = made()
    two[0].load_state(str(tmp_path / "state"))
    for each in (one, two):
        train(*each, range(6, 12))
    assert_same(one[1], two[1])


def test_transformers_trainer(tmp_path: Path) -> None:
    """Saves in each epoch, and resumes from a checkpoint."""
    from transformers import Trainer, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(pixels)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    data = [{"pixels": x, "labels": int(y)} for x, y in zip(IMAGES, LABELS, strict=True)]

    def fit(folder: Path, resume: Path | None = None) -> GatedModule:
        model = Classifier()
        optimizer = torch.optim.AdamW(model.net.parameters(), 0.01)
        attach(model.net, optimizer)
        arguments = TrainingArguments(
            str(folder), num_train_epochs=3, per_device_train_batch_size=16, use_cpu=True,
            save_strategy="epoch", eval_strategy="epoch", report_to=[], disable_tqdm=True,
            load_best_model_at_end=False, seed=0,
        )  # fmt: skip
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        trainer = Trainer(
            model, arguments, train_dataset=data, eval_dataset=data,
            optimizers=(optimizer, scheduler),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return model.net

    whole = fit(tmp_path / "a")
    again = fit(tmp_path / "b", tmp_path / "a" / "checkpoint-4")
    assert whole.steps == again.steps == 12
    assert_same(whole, again)


def test_timm(tmp_path: Path) -> None:
    """Its optimiser factory, average and checkpoints; a checkpoint is written in eval mode."""
    import timm.utils
    from timm.models import resume_checkpoint
    from timm.optim import create_optimizer_v2

    def made() -> tuple[GatedModule, Any, Any]:
        gated = network()
        optimizer = create_optimizer_v2(gated, opt="adamw", lr=0.01, weight_decay=0.05)
        attach(gated, optimizer)
        return gated, optimizer, timm.utils.ModelEmaV3(gated, decay=0.5, exclude_buffers=True)

    def train(gated: GatedModule, optimizer: Any, average: Any) -> None:
        gated.train()
        for images, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(gated(images), labels).backward()
            optimizer.step()
            average.update(gated)

    one = made()
    train(*one)
    one[0].eval()
    saver = timm.utils.CheckpointSaver(
        one[0], one[1], checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=0.5)
    two = made()
    with warnings.catch_warnings():
        resume_checkpoint(two[0], str(tmp_path / "last.pth.tar"), two[1], log_info=False)
    for each in (one, two):
        train(*each)
    assert_same(one[0], two[0])


def test_ignite() -> None:
    """Its EMAHandler averages a deep copy; at learning rate 0 the two are equal."""
    from ignite.engine import Events, create_supervised_trainer
    from ignite.handlers import EMAHandler

    gated = network()
    optimizer = torch.optim.SGD(gated.parameters(), 0.0)
    attach(gated, optimizer)
    trainer = create_supervised_trainer(gated, optimizer, F.cross_entropy)
    ema = EMAHandler(gated, momentum=0.3)
    ema.attach(trainer, name="momentum", event=Events.ITERATION_COMPLETED)
    trainer.run(loader(), max_epochs=3)
    one, two = gated.dense_state_dict(), ema.ema_model.dense_state_dict()
    assert gated.steps == 12
    for name, _ in gated.named_parameters():
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-7)


def test_fastai(tmp_path: Path) -> None:
    import fastai.callback.progress  # noqa: F401 - gives a Learner its no_bar
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper

    gated = network()
    data = [(x, y) for x, y in zip(IMAGES, LABELS, strict=True)]
    learner = Learner(
        DataLoaders(DataLoader(data, 16), DataLoader(data, 16), device="cpu"), gated,
        loss_func=nn.CrossEntropyLoss(), opt_func=partial(OptimWrapper, opt=torch.optim.AdamW),
        path=tmp_path,
    )  # fmt: skip
    learner.create_opt()
    attach(gated, learner.opt)
    with learner.no_bar(), learner.no_logging():
        learner.fit(2, 1e-2)
    assert gated.steps == 8


def test_skorch() -> None:
    classifier = attached_classifier()
    classifier.fit(IMAGES.numpy(), LABELS.numpy())
    assert classifier.module_.steps == 8
    assert classifier.predict(IMAGES.numpy()).shape == (64,)


def test_torchmetrics() -> None:
    from torchmetrics.classification import MulticlassAccuracy

    gated = network().eval()
    metric = MulticlassAccuracy(4, average="micro")
    for images, labels in loader():
        metric.update(gated(images), labels)
    wanted = (fxprune.shrink(gated)(IMAGES).argmax(1) == LABELS).float().mean()
    torch.testing.assert_close(metric.compute(), wanted)


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_schedule_free(first: str) -> None:
    """Its modes interpolate the parameters, before or after the network's; nothing is learnt."""
    import schedulefree

    gated = network()
    before = gated.dense_state_dict()
    optimizer = schedulefree.SGDScheduleFree(gated.parameters(), lr=1e-30)
    attach(gated, optimizer)
    optimizer.train()
    for images, labels in loader():
        optimizer.zero_grad()
        F.cross_entropy(gated(images), labels).backward()
        optimizer.step()
    for mode in ("eval", "train"):
        for part in (gated, optimizer) if first == "model" else (optimizer, gated):
            getattr(part, mode)()
    after = gated.dense_state_dict()
    for name, _ in gated.named_parameters():
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)


def test_a_copy_of_lightnings_averaging() -> None:
    """StochasticWeightAveraging copies the whole module, and the average over it at the end."""
    gated = network()
    optimizer = torch.optim.SGD(gated.parameters(), 0.0)
    attach(gated, optimizer)
    average = copy.deepcopy(nn.ModuleList([gated]))
    for count, (images, labels) in enumerate(loader(), 1):
        optimizer.zero_grad()
        F.cross_entropy(gated(images), labels).backward()
        optimizer.step()
        for mean, value in zip(average.parameters(), gated.parameters(), strict=True):
            mean.data.add_((value.data - mean.data) / count)
    inner: Any = average[0]
    one, two = gated.dense_state_dict(), inner.dense_state_dict()
    for name, _ in gated.named_parameters():
        torch.testing.assert_close(one[name], two[name], rtol=1e-6, atol=1e-7)
