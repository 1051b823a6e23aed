"""The networks of ultralytics, transformers and monai, and torchvision's whole detectors.

Each is built as its library ships it, untrained and small. ultralytics is AGPL-3.0: the sweep and
nothing else imports it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from zoo_models import Entry, vary

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("YOLO_OFFLINE", "True")

Loss = Callable[[nn.Module, nn.Module, Tensor], Tensor]
"""The library's own loss of (the model, the gated network, a batch of images)."""


@dataclass(frozen=True)
class LibraryEntry(Entry):
    """One network of another library.

    Attributes:
        make: builds it.
        loss: the library's own loss; the mean square of all outputs where there is none.
        kwargs: example inputs by keyword, of a batch of images.
    """

    make: Callable[[], nn.Module] = nn.Identity
    loss: Loss | None = None
    kwargs: Callable[[Tensor], Mapping[str, Any]] = field(default=lambda _: {})

    def build(self) -> nn.Module:
        """The untrained network, in evaluation mode, with parameters that hide no mistake."""
        torch.manual_seed(0)
        return vary(self.make()).eval()


def entries() -> Iterator[LibraryEntry]:
    """The networks of the libraries that are installed."""
    for family in (_ultralytics, _transformers, _monai, _detection):
        try:
            yield from family()
        except ImportError:
            continue


# --- ultralytics -----------------------------------------------------------------------------


def _ultralytics() -> Iterator[LibraryEntry]:
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


# --- transformers ----------------------------------------------------------------------------

_STAGES = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
_CLASSIFIERS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "resnet": ("ResNet", {**_STAGES, "embedding_size": 16}, False),
    "regnet": ("RegNet", {**_STAGES, "embedding_size": 16, "groups_width": 8}, False),
    "bit": ("Bit", {**_STAGES, "embedding_size": 16, "num_groups": 8}, False),
    "convnext": ("ConvNext", _STAGES, False),
    "convnextv2": ("ConvNextV2", _STAGES, False),
    "mobilenet_v1": ("MobileNetV1", {"depth_multiplier": 0.5}, False),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.5}, False),
    "efficientnet": (
        "EfficientNet",
        {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
        False,
    ),
    "poolformer": ("PoolFormer", _STAGES, False),
    "hgnet_v2": ("HGNetV2", {}, False),
    "textnet": ("TextNet", {}, False),
    "levit": ("Levit", {"image_size": 64}, True),
    "mobilevit": ("MobileViT", {"image_size": 64}, True),
    "mobilevitv2": ("MobileViTV2", {"image_size": 64, "width_multiplier": 0.5}, True),
    "swiftformer": (
        "SwiftFormer",
        {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 48, 64], "image_size": 64},
        True,
    ),
    "focalnet": (
        "FocalNet",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1, 1, 1]},
        False,
    ),
    "pvt": ("Pvt", {"image_size": 64, "depths": [1, 1, 1, 1]}, True),
    "pvt_v2": ("PvtV2", {"image_size": 64, "depths": [1, 1, 1, 1]}, True),
    "segformer": ("Segformer", {"depths": [1, 1, 1, 1]}, True),
    "vit": (
        "ViT",
        {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"intermediate_size": 64},
        True,
    ),
    "swin": (
        "Swin",
        {"image_size": 64, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]},
        True,
    ),
}
_SMALL_VIT = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}


def _transformers() -> Iterator[LibraryEntry]:
    import transformers as hf

    for name, (prefix, options, attention) in _CLASSIFIERS.items():
        side = options.get("image_size", 64)

        def classifier(prefix: str = prefix, options: dict[str, Any] = options) -> nn.Module:
            config = getattr(hf, f"{prefix}Config")(**options, num_labels=7)
            return getattr(hf, f"{prefix}ForImageClassification")(config)

        yield _hf(name, classifier, side, attention, loss=_class_loss, kwargs=_class_labels)
    convnext = {**_STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    basic = {**_STAGES, "embedding_size": 16, "out_features": ["stage2", "stage3", "stage4"]}
    yield _hf("resnet_backbone", lambda: hf.ResNetBackbone(hf.ResNetConfig(**basic)), 64)
    yield _hf("convnext_backbone", lambda: hf.ConvNextBackbone(hf.ConvNextConfig(**convnext)), 64)
    yield _hf(
        "dinov3_convnext", lambda: hf.DINOv3ConvNextModel(hf.DINOv3ConvNextConfig(**_STAGES)), 64
    )
    yield _hf(
        "upernet",
        lambda: hf.UperNetForSemanticSegmentation(
            hf.UperNetConfig(
                backbone_config=hf.ConvNextConfig(**convnext),
                hidden_size=32,
                auxiliary_channels=16,
                auxiliary_in_channels=64,
            )
        ),
        64,
    )
    yield _hf(
        "segformer_segmentation",
        lambda: hf.SegformerForSemanticSegmentation(
            hf.SegformerConfig(depths=[1, 1, 1, 1], decoder_hidden_size=32)
        ),
        64,
        True,
    )
    yield _hf(
        "mobilenet_v2_segmentation",
        lambda: hf.MobileNetV2ForSemanticSegmentation(hf.MobileNetV2Config(depth_multiplier=0.5)),
        64,
    )
    yield _hf(
        "mobilevit_segmentation",
        lambda: hf.MobileViTForSemanticSegmentation(hf.MobileViTConfig(image_size=64)),
        64,
        True,
    )
    yield _hf(
        "superpoint",
        lambda: hf.SuperPointForKeypointDetection(
            hf.SuperPointConfig(
                encoder_hidden_sizes=[16, 16, 32, 32],
                decoder_hidden_size=32,
                descriptor_decoder_dim=32,
            )
        ),
        64,
    )
    yield _hf(
        "swin2sr",
        lambda: hf.Swin2SRForImageSuperResolution(
            hf.Swin2SRConfig(
                image_size=32, embed_dim=24, depths=[1, 1], num_heads=[2, 2], window_size=8
            )
        ),
        32,
        True,
    )
    yield _hf(
        "glpn", lambda: hf.GLPNForDepthEstimation(hf.GLPNConfig(depths=[1, 1, 1, 1])), 64, True
    )
    yield _hf(
        "clip_vision",
        lambda: hf.CLIPVisionModel(
            hf.CLIPVisionConfig(**_SMALL_VIT, num_hidden_layers=2, image_size=32, patch_size=8)
        ),
        32,
        True,
    )
    yield _hf(
        "dpt",
        lambda: hf.DPTForDepthEstimation(
            hf.DPTConfig(
                **_SMALL_VIT,
                num_hidden_layers=4,
                image_size=32,
                patch_size=8,
                backbone_out_indices=[0, 1, 2, 3],
                neck_hidden_sizes=[16, 16, 32, 32],
                fusion_hidden_size=16,
            )
        ),
        32,
        True,
    )
    yield _hf("rt_detr", lambda: _rt_detr(hf), 64, True)
    yield _hf("detr", lambda: _detr(hf), 64, True)


def _hf(
    name: str,
    make: Callable[[], nn.Module],
    side: int,
    attention: bool = False,
    **options: Any,
) -> LibraryEntry:
    return LibraryEntry(
        f"transformers:{name}",
        "transformers",
        (3, side, side),
        attention,
        make=make,
        millions=2.0,
        **options,
    )


def _class_labels(images: Tensor) -> Mapping[str, Any]:
    return {"labels": torch.arange(len(images))}


def _class_loss(model: nn.Module, gated: nn.Module, images: Tensor) -> Tensor:
    del model
    loss: Tensor = gated(images, **_class_labels(images)).loss
    return loss


_DETR = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4}


def _rt_detr(hf: Any) -> nn.Module:
    backbone = hf.RTDetrResNetConfig(
        **_STAGES,
        embedding_size=16,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = hf.RTDetrConfig(
        **_DETR,
        backbone_config=backbone,
        encoder_hidden_dim=32,
        encoder_in_channels=[32, 64, 64],
        feat_strides=[8, 16, 32],
        encoder_ffn_dim=32,
        num_queries=20,
        decoder_in_channels=[32, 32, 32],
        decoder_ffn_dim=32,
        decoder_layers=1,
    )
    return hf.RTDetrForObjectDetection(config)


def _detr(hf: Any) -> nn.Module:
    backbone = hf.ResNetConfig(**_STAGES, embedding_size=16, out_features=["stage4"])
    config = hf.DetrConfig(
        **_DETR,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
    )
    return hf.DetrForObjectDetection(config)


# --- monai -----------------------------------------------------------------------------------


def _monai() -> Iterator[LibraryEntry]:
    import monai.networks.nets as nets

    five = (16, 16, 32, 64, 128, 16)
    table: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "UNet_2d": (
            lambda: nets.UNet(2, 1, 2, (16, 32, 64), (2, 2), num_res_units=1),
            (1, 32, 32),
        ),
        "UNet_3d": (
            lambda: nets.UNet(3, 1, 2, (16, 32, 64), (2, 2), num_res_units=1),
            (1, 16, 16, 16),
        ),
        "AttentionUnet_2d": (
            lambda: nets.AttentionUnet(2, 1, 2, (16, 32, 64), (2, 2)),
            (1, 32, 32),
        ),
        "BasicUNet_2d": (lambda: nets.BasicUNet(2, 1, 2, five), (1, 32, 32)),
        "BasicUNet_3d": (lambda: nets.BasicUNet(3, 1, 2, five), (1, 32, 32, 32)),
        "BasicUNetPlusPlus_2d": (lambda: nets.BasicUNetPlusPlus(2, 1, 2, five), (1, 32, 32)),
        "AutoEncoder_2d": (
            lambda: nets.AutoEncoder(2, 1, 1, (16, 32), (2, 2), num_res_units=1),
            (1, 32, 32),
        ),
        "VarAutoEncoder_2d": (
            lambda: nets.VarAutoEncoder(2, (1, 32, 32), 1, 4, (16, 32), (2, 2)),
            (1, 32, 32),
        ),
        "Classifier_2d": (lambda: nets.Classifier((1, 32, 32), 3, (16, 32), (2, 2)), (1, 32, 32)),
        "Discriminator_2d": (
            lambda: nets.Discriminator((1, 32, 32), (16, 32), (2, 2)),
            (1, 32, 32),
        ),
        "Regressor_2d": (lambda: nets.Regressor((1, 32, 32), (3,), (16, 32), (2, 2)), (1, 32, 32)),
        "DenseNet_2d": (
            lambda: nets.DenseNet(
                2, 1, 3, init_features=16, growth_rate=16, block_config=(2, 2, 2)
            ),
            (1, 32, 32),
        ),
        "DenseNet_3d": (
            lambda: nets.DenseNet(3, 1, 3, init_features=16, growth_rate=16, block_config=(2, 2)),
            (1, 32, 32, 32),
        ),
        "DynUNet_2d": (
            lambda: nets.DynUNet(2, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[16, 32, 64]),
            (1, 32, 32),
        ),
        "DynUNet_3d_deep": (
            lambda: nets.DynUNet(
                *(3, 1, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2]),
                filters=[16, 32, 64, 64],
                deep_supervision=True,
            ),
            (1, 32, 32, 32),
        ),
        "EfficientNet_2d": (
            lambda: nets.EfficientNetBN("efficientnet-b0", False, spatial_dims=2, num_classes=3),
            (3, 64, 64),
        ),
        "FlexibleUNet_2d": (lambda: nets.FlexibleUNet(3, 2, "efficientnet-b0"), (3, 64, 64)),
        "HighResNet_3d": (lambda: nets.HighResNet(3, 1, 2), (1, 16, 16, 16)),
        "HoVerNet": (lambda: nets.HoVerNet("original", 3, 3), (3, 270, 270)),
        "PatchDiscriminator": (lambda: nets.PatchDiscriminator(2, 16, 1), (1, 64, 64)),
        "Quicknat": (
            lambda: nets.Quicknat(num_classes=2, num_channels=1, num_filters=16),
            (1, 32, 32),
        ),
        "RegUNet_2d": (lambda: nets.RegUNet(2, 1, 16, 2), (1, 32, 32)),
        "resnet10_3d": (
            lambda: nets.resnet10(
                spatial_dims=3, n_input_channels=1, num_classes=3, widen_factor=0.5
            ),
            (1, 32, 32, 32),
        ),
        "resnet50_2d": (
            lambda: nets.resnet50(
                spatial_dims=2, n_input_channels=1, num_classes=3, widen_factor=0.5
            ),
            (1, 64, 64),
        ),
        "SegResNet_2d": (lambda: nets.SegResNet(2, 16, 1, 2), (1, 32, 32)),
        "SegResNet_3d": (lambda: nets.SegResNet(3, 16, 1, 2), (1, 16, 16, 16)),
        "SegResNetVAE_2d": (
            lambda: nets.SegResNetVAE(
                (32, 32), spatial_dims=2, init_filters=16, in_channels=1, out_channels=2
            ),
            (1, 32, 32),
        ),
        "SegResNetDS_2d": (lambda: nets.SegResNetDS(2, 16, 1, 2), (1, 64, 64)),
        "SEResNet50_2d": (
            lambda: nets.SEResNet50(spatial_dims=2, in_channels=3, num_classes=3),
            (3, 64, 64),
        ),
        "VNet_3d": (lambda: nets.VNet(3, 1, 2), (1, 32, 32, 32)),
        "VNet_2d": (lambda: nets.VNet(2, 1, 2), (1, 64, 64)),
        "VQVAE_2d": (
            lambda: nets.VQVAE(
                *(2, 1, 1, (16, 16), 1, 16),
                *(((2, 4, 1, 1), (2, 4, 1, 1)), ((2, 4, 1, 1, 0), (2, 4, 1, 1, 0))),
                num_embeddings=8,
                embedding_dim=8,
            ),
            (1, 32, 32),
        ),
        "DAF3D": (lambda: nets.DAF3D(1, 2), (1, 32, 32, 32)),
        "Generator": (lambda: nets.Generator((16,), (16, 8, 8), (32, 16, 1), (2, 2, 1)), (16,)),
        "MedNeXtS_2d": (lambda: nets.MedNeXtS(spatial_dims=2, in_channels=1), (1, 64, 64)),
    }
    for name, (make, shape) in table.items():
        yield LibraryEntry(f"monai:{name}", "monai", shape, make=make, millions=4.0)


# --- torchvision detection -------------------------------------------------------------------

_DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 96,
    "fcos_resnet50_fpn": 96,
    "keypointrcnn_resnet50_fpn": 96,
    "maskrcnn_resnet50_fpn": 96,
    "retinanet_resnet50_fpn": 96,
    "ssdlite320_mobilenet_v3_large": 96,
}


def _detection() -> Iterator[LibraryEntry]:
    from torchvision import models

    for name, side in _DETECTORS.items():
        yield LibraryEntry(
            f"torchvision:{name}",
            "torchvision detection",
            (3, side, side),
            make=lambda name=name: models.get_model(
                name, weights=None, weights_backbone=None, num_classes=3
            ),
            millions=40.0,
            trains=False,
        )
