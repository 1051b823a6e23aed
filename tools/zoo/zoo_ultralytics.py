"""The networks of ultralytics, one for each of its configurations, at the smallest scale.

ultralytics is AGPL-3.0: the sweep and nothing else imports it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_entry import LibraryEntry

os.environ.setdefault("YOLO_OFFLINE", "True")


def entries() -> Iterator[LibraryEntry]:
    import ultralytics

    folder = Path(ultralytics.__file__).parent / "cfg" / "models"
    for path in sorted(folder.rglob("*.yaml")):
        name = path.stem
        if name == "yolo11-cls-resnet18":
            continue  # its backbone is downloaded
        side = 64 if "-cls" in name else 128
        yield LibraryEntry(
            f"ultralytics:{name}",
            "ultralytics",
            (3, side, side),
            attention=any(word in name for word in ("rtdetr", "yolo12", "world", "yoloe")),
            make=lambda path=path: _yolo(path),
            loss=_yolo_loss if _has_loss(name) else None,
            millions=3.0,
        )


def _has_loss(name: str) -> bool:
    """Whether the loss takes boxes and classes alone."""
    others = ("seg", "pose", "obb", "cls", "rtdetr", "world", "yoloe", "sem", "depth")
    return not any(word in name for word in others)


def _yolo(path: Path) -> nn.Module:
    from ultralytics.nn import tasks
    from ultralytics.utils import LOGGER

    LOGGER.setLevel(50)
    config = tasks.yaml_model_load(str(path))
    if "scales" in config:
        config["scale"] = "n" if "n" in config["scales"] else next(iter(config["scales"]))
    name = path.stem
    if "rtdetr" in name:
        kind = tasks.RTDETRDetectionModel
    elif "world" in name:
        kind = tasks.WorldModel
    elif "yoloe" in name:
        kind = tasks.YOLOESegModel if "seg" in name else tasks.YOLOEModel
    else:
        kinds = {
            "segment": "SegmentationModel",
            "classify": "ClassificationModel",
            "pose": "PoseModel",
            "obb": "OBBModel",
            "semantic": "SemanticSegmentationModel",
            "depth": "DepthModel",
        }
        kind = getattr(tasks, kinds.get(tasks.guess_model_task(config), "DetectionModel"))
    return kind(config, ch=3, verbose=False)


def _yolo_loss(model: nn.Module, gated: nn.Module, images: Tensor) -> Tensor:
    from ultralytics.cfg import get_cfg

    any_model: Any = model
    any_model.args = get_cfg()  # the gains of the parts
    batch = {
        "img": images,
        "batch_idx": torch.arange(len(images)),
        "cls": torch.zeros(len(images), 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]]).repeat(len(images), 1),
    }
    loss, _ = any_model.init_criterion()(gated(images), batch)
    total: Tensor = loss.sum()
    return total
