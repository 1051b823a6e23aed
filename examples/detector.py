"""A torchvision detector whose backbone is gated trains in the loop of torchvision's references.

    python examples/detector.py --out out --epochs 3

Boxes, anchors, losses and the selection of detections stay torchvision's. The gated network takes
the backbone's place, which holds most of the work. The file has the backbone and the head; what
follows them in torchvision (decoding, non-maximum suppression) follows it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

import fxprune

SIDE = 96
Example = tuple[Tensor, dict[str, Tensor]]


class Rectangles(Dataset[Example]):
    """Bright rectangles of two classes, wide and tall ones, on a dark ground."""

    def __init__(self, images: int = 16) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> Example:
        numbers = torch.Generator().manual_seed(index)
        image = 0.2 * torch.rand(3, SIDE, SIDE, generator=numbers)
        label = int(torch.randint(1, 3, (), generator=numbers))
        width, height = (48, 24) if label == 1 else (24, 48)
        left, top = torch.randint(SIDE - 48, (2,), generator=numbers).tolist()
        image[:, top : top + height, left : left + width] = 0.9
        box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
        return image, {"boxes": box, "labels": torch.tensor([label])}


class Raw(nn.Module):
    """What a detector computes before its boxes are decoded: logits and offsets per anchor."""

    def __init__(self, detector: RetinaNet, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.head(list(self.backbone(images).values()))


def train_one_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Example], epoch: int
) -> float:
    """As in references/detection/engine.py of torchvision."""
    model.train()
    warmup = None
    if epoch == 0:
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.001, total_iters=len(loader) - 1)
    for images, targets in loader:
        losses = sum(model(list(images), [dict(target) for target in targets]).values())
        optimizer.zero_grad()
        losses.backward()
        optimizer.step()
        if warmup is not None:
            warmup.step()
    return float(losses.detach())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("detector-out"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    example_inputs = (torch.zeros(2, 3, SIDE, SIDE),)
    gated = fxprune.instrument(backbone, example_inputs, policy="balance", budget="macs=0.5")
    gated.out_channels = backbone.out_channels  # which the detector asks for
    detector = RetinaNet(gated, num_classes=3, min_size=SIDE, max_size=SIDE)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.005, momentum=0.9, weight_decay=5e-4)
    fxprune.attach(gated, optimizer)

    loader = DataLoader(Rectangles(), 8, shuffle=True, collate_fn=lambda batch: tuple(zip(*batch)))
    for epoch in range(given.epochs):
        print(f"epoch {epoch + 1}: loss {train_one_epoch(detector, optimizer, loader, epoch):.3f}")
    detector.eval()
    found = detector([Rectangles()[0][0]])[0]  # runs the narrow network
    print(f"{len(found['boxes'])} boxes in the first image")

    report = fxprune.export_onnx(
        Raw(detector, fxprune.shrink(gated)),
        example_inputs,
        given.out / "compact.onnx",
        reference=Raw(detector, fxprune.reference_of(gated, backbone)),
    )
    print(f"{report.params} parameters, largest difference {report.max_rel_error:.1e}")


if __name__ == "__main__":
    main()
