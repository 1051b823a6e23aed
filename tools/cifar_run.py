"""Trains a CIFAR ResNet, dense or gated, and says what came of it.

    python tools/cifar_run.py --data-file cifar10.npz --policy cucb --budget keep=0.5 --epochs 20 \
        --run runs/cucb

A policy whose options count steps can name them: --policy 'utility{warmup=1955}' lets all channels
execute for the first 5 epochs of 391 steps.

The data file holds `train_labels`, `train_offsets`, `train_jpeg` and the same for `test`: image i
is the JPEG file `jpeg[offsets[i]:offsets[i + 1]]`. Accuracy is on `test`, which nothing is chosen
by. A run that is called again goes on from its last epoch.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune import data, train
from fxprune.onnx import latency

Record = dict[str, Any]

CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def load_npz(path: Path) -> data.DataSet:
    """Decodes all images once, to uint8 [N, 3, 32, 32]."""
    arrays = np.load(path)
    parts = []
    for name in ("train", "test"):
        content = arrays[f"{name}_jpeg"].tobytes()
        spans = pairwise(arrays[f"{name}_offsets"].tolist())
        images = np.stack([np.asarray(Image.open(BytesIO(content[a:b]))) for a, b in spans])
        labels = torch.from_numpy(arrays[f"{name}_labels"]).to(torch.int64)
        parts.append((torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels))
    return data.from_tensors("cifar10", parts[0], parts[1], CLASSES, pad=4, flip=True)


def macs(model: torch.nn.Module) -> int:
    """Multiply-accumulates of one image, by torch's own counter (which counts 2 for each)."""
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return int(counter.get_total_flops()) // 2


def export(model: torch.nn.Module, images: data.DataSet, path: Path, threads: int) -> Record:
    """Writes the network as ONNX, checked on random and on real images against `model`."""
    compact = fxprune.shrink(model) if isinstance(model, fxprune.GatedModule) else model
    real, _ = next(images.val.batches(7))
    example = torch.zeros(2, 3, 32, 32)
    report = fxprune.export_onnx(compact, (example,), path, inputs=(real,), reference=model)
    batch = torch.randn(64, 3, 32, 32)
    return {
        "macs": macs(compact),
        "params": sum(parameter.numel() for parameter in compact.parameters()),
        "onnx_max_abs_error": report.max_abs_error,
        "onnx_max_rel_error": report.max_rel_error,
        "onnx_bytes": report.bytes,
        "onnx_ms_batch_64": 1000 * latency(path, (batch,), threads=threads),
    }


def options_of(arguments: argparse.Namespace) -> train.TrainOptions:
    return train.TrainOptions(
        epochs=arguments.epochs,
        lr=arguments.lr,
        schedule=arguments.schedule,
        lr_warmup=arguments.lr_warmup,
        batch_size=arguments.batch_size,
        weight_decay=arguments.weight_decay,
        amp=arguments.amp,
        channels_last=arguments.channels_last,
        settle=arguments.settle,
        seed=arguments.seed,
    )


def show(tick: train.Tick) -> None:
    metrics = tick.metrics
    if metrics is not None:
        print(
            f"epoch {metrics.epoch:3}  lr {metrics.lr:.4f}  "
            f"train {metrics.train_loss:.4f} {metrics.train_accuracy:.4f}  "
            f"test {metrics.val_loss:.4f} {metrics.val_accuracy:.4f}  "
            f"{metrics.step_seconds * 1000:.1f} ms a step  {metrics.seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-file", type=Path, required=True)
    parser.add_argument("--model", choices=("resnet20", "resnet32", "resnet56"), default="resnet20")
    parser.add_argument("--shortcut", choices=("pad", "projection"), default="pad")
    parser.add_argument("--policy", default="none", help="cucb, utility, …; none is dense")
    parser.add_argument("--budget", default="keep=0.5")
    parser.add_argument("--round-to", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="steps between two selections")
    parser.add_argument("--settle", type=float, default=0.1, help="last share, selection fixed")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--minutes-limit", type=float)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--lr-warmup", type=float, default=0.05)
    parser.add_argument("--schedule", choices=("cosine", "step"), default="cosine")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--amp", choices=("auto", "off", "bfloat16", "float16"), default="auto")
    parser.add_argument("--channels-last", choices=("auto", "off", "on"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, help="folder for checkpoint, metrics and result")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    began = time.perf_counter()
    images = load_npz(arguments.data_file)
    print(f"decoded in {time.perf_counter() - began:.0f} s", flush=True)
    model: torch.nn.Module = getattr(models, arguments.model)(shortcut=arguments.shortcut)
    if arguments.policy != "none":
        model = fxprune.instrument(
            model,
            (torch.zeros(2, 3, 32, 32),),
            arguments.policy,
            arguments.budget,
            round_to=arguments.round_to,
            every=arguments.every,
            seed=arguments.seed,
        )
    history = train.fit(
        model,
        images,
        options_of(arguments),
        run=arguments.run,
        progress=show,
        minutes=arguments.minutes_limit,
    )
    if not history:
        sys.exit("no epoch was trained")
    with tempfile.TemporaryDirectory() as scratch:
        path = (arguments.run or Path(scratch)) / "network.onnx"
        exported = export(model, images, path, arguments.threads)
    result: Record = {
        "model": arguments.model,
        "policy": arguments.policy,
        "budget": arguments.budget if arguments.policy != "none" else None,
        "epochs": len(history),
        "accuracy": history[-1].val_accuracy,
        "step_ms": 1000 * statistics.median(item.step_seconds for item in history),
        "minutes": sum(item.seconds for item in history) / 60,
        **exported,
    }
    print(json.dumps(result, indent=2))
    if arguments.run is not None:
        (arguments.run / "result.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
