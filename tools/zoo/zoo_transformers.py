"""The convolutional and hybrid networks of transformers, small, from their configurations."""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from zoo_entry import LibraryEntry

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

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


def entries() -> Iterator[LibraryEntry]:
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
