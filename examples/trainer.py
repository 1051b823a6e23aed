"""A transformers backbone is gated inside a classifier that transformers' own Trainer trains.

    pip install transformers accelerate
    python examples/trainer.py --out out --epochs 3

Give a trained backbone (`AutoBackbone.from_pretrained(...)`) in place of the small one here.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetBackbone, ResNetConfig, Trainer, TrainingArguments

import fxprune

SIDE = 32


class Features(nn.Module):
    """A backbone of transformers, from images [B, 3, H, W] to its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic",
            out_features=["stage3"],
        )  # fmt: skip
        self.backbone = ResNetBackbone(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.backbone(pixel_values).feature_maps[-1]


class Network(nn.Module):
    """The backbone and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = Features(), nn.Linear(128, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.features(pixel_values).mean((2, 3)))


class Classifier(nn.Module):
    """What a Trainer takes: it returns the loss beside the logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.network(pixel_values)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def examples(images: int = 64) -> list[dict[str, Tensor | int]]:
    """Makes images with a bright bar, that lies (class 0) or stands (class 1)."""
    numbers = torch.Generator().manual_seed(0)
    made: list[dict[str, Tensor | int]] = []
    for index in range(images):
        image, place = 0.3 * torch.rand(3, SIDE, SIDE, generator=numbers), 4 + index % 24
        bar = image[:, place : place + 4] if index % 2 == 0 else image[:, :, place : place + 4]
        bar += 0.7
        made.append({"pixel_values": image, "labels": index % 2})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("trainer-out"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)

    network = Network()
    example_inputs = (torch.zeros(2, 3, SIDE, SIDE),)
    gated = fxprune.instrument(network, example_inputs, policy="balance", budget="macs=0.5")
    optimizer = torch.optim.AdamW(gated.parameters(), 0.003)
    fxprune.attach(gated, optimizer)
    arguments = TrainingArguments(
        str(given.out / "run"), num_train_epochs=given.epochs, per_device_train_batch_size=16,
        use_cpu=True, save_strategy="epoch", eval_strategy="epoch", report_to=[],
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 4 * given.epochs)
    data = examples()
    trainer = Trainer(
        Classifier(gated), arguments, train_dataset=data, eval_dataset=data,
        compute_metrics=lambda seen: {"right": float((seen[0].argmax(1) == seen[1]).mean())},
        optimizers=(optimizer, schedule),
    )  # fmt: skip
    trainer.train()
    print(f"right: {trainer.evaluate()['eval_right']:.0%}")

    gated.eval()
    images = torch.stack([example["pixel_values"] for example in data])
    report = fxprune.export_onnx(
        fxprune.shrink(gated),
        example_inputs,
        given.out / "compact.onnx",
        inputs=(images,),
        reference=fxprune.reference_of(gated, network),
    )
    print(f"{report.params} parameters, largest difference {report.max_rel_error:.1e}")


if __name__ == "__main__":
    main()
