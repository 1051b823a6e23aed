"""Averages, precision, processes and model selection of the training frameworks.

Where a test trains at learning rate 0 nothing is learnt, so every average equals the network.
"""

import copy
import subprocess
import sys
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

POLICIES = ["random", "cucb", "utility{warmup=2,reallocate=3}"]


def assert_close(one: GatedModule, two: GatedModule) -> None:
    first, second = one.dense_state_dict(), two.dense_state_dict()
    for name, _ in one.named_parameters():
        torch.testing.assert_close(first[name], second[name], rtol=1e-6, atol=1e-7)


def assert_law(gated: GatedModule) -> None:
    gated.eval()
    torch.testing.assert_close(fxprune.shrink(gated)(IMAGES), gated(IMAGES), rtol=0, atol=1e-5)


def lit(policy: str, rate: float) -> Any:
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
            self.net(batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(self.net.parameters(), rate, momentum=0.9)
            attach(self.net, optimizer)
            return optimizer

    return Lit()


def trainer(**options: Any) -> Any:
    import lightning

    return lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["swa", "ema"])
def test_lightnings_averages(kind: str, policy: str) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

    module = lit(policy, 0.0)
    before = copy.deepcopy(module.net)
    average: Any = EMAWeightAveraging(decay=0.7)
    if kind == "swa":
        average = StochasticWeightAveraging(swa_lrs=1e-30, swa_epoch_start=1)
    trainer(max_epochs=4, callbacks=[average]).fit(module, loader(), loader())
    assert module.net.steps >= 12
    assert_close(module.net, before)
    assert_law(module.net)


def test_attached_to_the_optimizer_that_lightning_returns() -> None:
    import lightning

    class Late(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network("random")

        def training_step(self, batch: Any, index: int) -> Tensor:
            del index
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.net.parameters(), 0.01)

        def on_train_start(self) -> None:
            attach(self.net, self.optimizers())

    module = Late()
    trainer(max_epochs=1).fit(module, loader())
    assert module.net.steps == len(loader())


@pytest.mark.parametrize("policy", POLICIES)
def test_lightning_in_bf16(policy: str) -> None:
    module = lit(policy, 0.05)
    trainer(max_epochs=3, precision="bf16-mixed").fit(module, loader(), loader())
    assert module.net.steps == 12
    assert_law(module.net)


RANKS = """
import sys
from tests.integration.test_framework_options import assert_law, lit, loader, trainer

if __name__ == "__main__":
    module = lit("cucb", 0.05)
    trainer(max_epochs=2, strategy="ddp", devices=2).fit(module, loader(), loader())
    state = module.net.training_state()
    total = sum(float(tensor.double().sum()) for tensor in state.values())
    assert_law(module.net)
    with open(f"{sys.argv[1]}/rank{module.global_rank}", "w") as file:
        file.write(f"{module.net.steps} {total!r}")
"""


def test_lightning_on_two_processes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = tmp_path / "ranks.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(root)!r})\n{RANKS}")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=root, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = ((tmp_path / f"rank{rank}").read_text() for rank in (0, 1))
    assert one == two
    assert one.startswith("4 ")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_best_model_of_transformers_trainer(tmp_path: Path, policy: str) -> None:
    """Loaded at the end, over the selections of the last epoch."""
    from transformers import Trainer, TrainingArguments

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(policy)
            self.seen: list[tuple[float, Tensor]] = []

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(pixels)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    data = [{"pixels": x, "labels": int(y)} for x, y in zip(IMAGES, LABELS, strict=True)]
    model = Classifier()
    optimizer = torch.optim.SGD(model.net.parameters(), 1.0, momentum=0.9)  # gets worse
    attach(model.net, optimizer)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=4, per_device_train_batch_size=16, use_cpu=True,
        save_strategy="epoch", eval_strategy="epoch", report_to=[], disable_tqdm=True,
        load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=False,
        per_device_eval_batch_size=64,
    )  # fmt: skip
    run = Trainer(
        model, arguments, train_dataset=data, eval_dataset=data,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )  # fmt: skip
    run.train()
    found = run.evaluate()["eval_loss"]
    assert found == pytest.approx(run.state.best_metric, abs=1e-5)
    assert_law(model.net)


@pytest.mark.parametrize("policy", POLICIES)
def test_timms_scaler_and_average(policy: str) -> None:
    from timm.utils import ModelEmaV3, NativeScaler

    gated = network(policy)
    optimizer = torch.optim.SGD(gated.parameters(), 0.0, momentum=0.9)
    attach(gated, optimizer)
    scaler, average = NativeScaler("cpu"), ModelEmaV3(gated, decay=0.5, exclude_buffers=True)
    for _ in range(3):
        for images, labels in loader():
            optimizer.zero_grad()
            loss = F.cross_entropy(gated(images), labels)
            scaler(loss, optimizer, clip_grad=1.0, parameters=gated.parameters())
            average.update(gated)
    assert gated.steps == 12
    assert_close(gated, average.module)


@pytest.mark.parametrize("policy", POLICIES)
def test_an_average_over_the_state_dict(policy: str) -> None:
    """As ultralytics' ModelEMA: a deep copy, the values of whose state_dict change in place."""
    gated = network(policy)
    optimizer = torch.optim.SGD(gated.parameters(), 0.0, momentum=0.9)
    attach(gated, optimizer)
    ema = copy.deepcopy(gated).eval()
    for parameter in ema.parameters():
        parameter.requires_grad_(False)
    for images, labels in [*loader()] * 3:
        optimizer.zero_grad()
        F.cross_entropy(gated(images), labels).backward()
        optimizer.step()
        values = gated.state_dict()
        for name, value in ema.state_dict().items():
            if value.dtype.is_floating_point:
                value *= 0.7
                value += 0.3 * values[name].detach()
    assert gated.steps == 12
    assert_close(gated, ema)
    assert_law(ema)


def test_skorch_clones_and_cross_validates() -> None:
    from sklearn.base import clone
    from sklearn.model_selection import cross_val_score

    classifier = attached_classifier(classes=[0, 1, 2, 3])
    scores = cross_val_score(classifier, IMAGES.numpy(), LABELS.numpy(), cv=3)
    assert len(scores) == 3
    fitted = clone(classifier).fit(IMAGES.numpy(), LABELS.numpy())
    assert fitted.module_.steps == 8
    assert_law(fitted.module_)
