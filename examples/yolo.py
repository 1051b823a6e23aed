"""An ultralytics YOLO, gated inside its own `YOLO.train`, ends in a smaller ONNX file.

ultralytics is AGPL-3.0, and only this script imports it: pip install ultralytics

    python examples/yolo.py --out out --epochs 3

The trainer is ultralytics' own. It is given a gated network, whose optimiser is attached, and its
checkpoints are the network that an export would take. Take your own data.yaml and a trained
network (`YOLO("mine.pt")`) in place of the drawn rectangles.
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "True")  # nothing here needs the network

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

import fxprune

SIDE = 64


class GatedModel(DetectionModel):
    """A DetectionModel of whose layers a gated network has taken the place."""

    def __init__(self, dense: DetectionModel) -> None:
        nn.Module.__init__(self)
        example_inputs = (torch.zeros(2, 3, SIDE, SIDE),)
        self.gated = fxprune.instrument(dense, example_inputs, policy="balance", budget="macs=0.5")
        self.yaml, self.stride = dense.yaml, dense.stride
        self.save, self.names, self.inplace = dense.save, dense.names, dense.inplace
        head = dense.model[-1]  # the loss reads the numbers of the head, and none of its weights
        for name, _ in list(head.named_children()):
            setattr(head, name, nn.Identity())
        self.model = nn.ModuleList([head])

    def predict(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs  # profile and augment, for prediction
        return self.gated(x)


class GatedTrainer(DetectionTrainer):
    """Trains a gated network; its checkpoints are plain networks of ultralytics."""

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> GatedModel:
        model = super().get_model(cfg, weights, verbose)
        model.args = self.args
        return GatedModel(model)

    def _build_train_pipeline(self) -> None:
        super()._build_train_pipeline()  # makes the optimiser
        fxprune.attach(self.model.gated, self.optimizer)

    def optimizer_step(self) -> None:
        self.ema._pairs = None  # lists of tensors, which are others when the widths change
        super().optimizer_step()

    def plain(self) -> DetectionModel:
        """The average, as a plain network whose removed channels are zero."""
        average = self.ema.ema
        model = super().get_model(average.yaml, verbose=False)
        model.args, model.names = self.args, average.names
        return fxprune.reference_of(average.gated, model.eval())

    def save_model(self) -> bool:
        average, self.ema.ema = self.ema.ema, self.plain()
        saved = super().save_model()
        self.ema.ema = average
        return saved


def draw(folder: Path, images: int = 32) -> Path:
    """Draws bright rectangles of two classes, wide and tall ones, on a dark ground."""
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            pixels = numbers.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
            kind = int(numbers.integers(2))
            width, height = (28, 14) if kind == 0 else (14, 28)
            left, top = numbers.integers(0, SIDE - 28, 2)
            pixels[top : top + height, left : left + width] = 230
            Image.fromarray(pixels).save(folder / "images" / split / f"{index}.png")
            box = ((left + width / 2), (top + height / 2), width, height)
            line = " ".join(f"{number / SIDE:.4f}" for number in box)
            (folder / "labels" / split / f"{index}.txt").write_text(f"{kind} {line}\n")
    data = folder / "data.yaml"
    data.write_text(
        f"path: {folder.resolve()}\ntrain: images/train\nval: images/val\n"
        "names:\n  0: wide\n  1: tall\n"
    )
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("yolo-out"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()

    yolo = YOLO("yolov8n.yaml")
    yolo.train(
        trainer=GatedTrainer, data=str(draw(given.out / "data")), epochs=given.epochs, imgsz=SIDE,
        batch=8, workers=0, device="cpu", plots=False, amp=False, pretrained=False,
        project=str(given.out.resolve()), name="run", exist_ok=True,
    )  # fmt: skip

    average = yolo.trainer.ema.ema.gated.eval()
    compact = fxprune.shrink(average)
    report = fxprune.export_onnx(
        compact,
        (torch.zeros(2, 3, SIDE, SIDE),),
        given.out / "compact.onnx",
        reference=yolo.trainer.plain(),
    )
    print(f"{report.params} parameters, largest difference {report.max_rel_error:.1e}")


if __name__ == "__main__":
    main()
