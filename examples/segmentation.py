"""A segmentation network trains with a DiceLoss of MONAI (Apache-2.0), by fxprune's `fit`.

    pip install monai
    python examples/segmentation.py --out out --epochs 3

Loss and metric are MONAI's, what the network returns goes to them. The same from the command line:
`fxprune train model.fxprune --data segmentation.py:pixels --loss segmentation.py:dice_loss`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from torch import Tensor
from torch.utils.data import TensorDataset

import fxprune
from fxprune.data import own_data
from fxprune.trainer.loop import fit
from fxprune.trainer.options import TrainOptions

SIDE = 32


def pixels(images: int = 64) -> tuple[TensorDataset, TensorDataset]:
    """Makes a training and a validation set: bright discs, and the label image of each."""
    numbers = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    centres = torch.randint(8, SIDE - 8, (2 * images, 2, 1, 1), generator=numbers)
    radii = torch.randint(4, 8, (2 * images, 1, 1), generator=numbers)
    discs = (rows - centres[:, 0]).square() + (columns - centres[:, 1]).square() < radii.square()
    noise = torch.rand(2 * images, 1, SIDE, SIDE, generator=numbers)
    pictures, labels = 0.5 * noise + 0.5 * discs.unsqueeze(1), discs.long()
    return (
        TensorDataset(pictures[:images], labels[:images]),
        TensorDataset(pictures[images:], labels[images:]),
    )


def dice_loss() -> Callable[[Tensor, Tensor], Tensor]:
    """Makes the loss: logits [B, 2, H, W] and classes [B, H, W] to a scalar."""
    dice = DiceLoss(to_onehot_y=True, softmax=True)
    return lambda logits, labels: dice(logits, labels.unsqueeze(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("segmentation-out"))
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    model = UNet(2, 1, 2, channels=(16, 32, 64), strides=(2, 2), num_res_units=1, norm="batch")
    example_inputs = (torch.zeros(2, 1, SIDE, SIDE),)
    gated = fxprune.instrument(model, example_inputs, policy="balance", budget="macs=0.5")
    loss = dice_loss()
    options = TrainOptions(
        epochs=given.epochs, lr=0.01, optimizer="adamw", batch_size=16, augment=False, device="cpu"
    )
    training, validation = pixels()
    data = own_data((training, validation), "pixels")
    for metrics in fit(
        gated, data, options, loss=loss, metric=lambda logits, labels: 1 - loss(logits, labels)
    ):
        print(f"epoch {metrics.epoch}: Dice {metrics.val_metric:.3f}")

    report = fxprune.export_onnx(
        fxprune.shrink(gated),
        example_inputs,
        given.out / "compact.onnx",
        inputs=(validation.tensors[0],),
        reference=fxprune.reference_of(gated, model),
    )
    print(f"{report.params} parameters, largest difference {report.max_rel_error:.1e}")


if __name__ == "__main__":
    main()
