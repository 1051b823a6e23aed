"""The networks of the zoo sweep, by collection and family.

torchvision: all classification, segmentation and convolutional video networks; detection and
optical flow through their backbones. timm: every family of convolutional networks, at least one
small variant of each, more where a family has several kinds of layers; a few hybrids of
convolution and attention, which are counted apart. Other libraries: a file for each.
"""

import contextlib
from collections.abc import Iterator

import zoo_monai
import zoo_transformers
import zoo_ultralytics
from zoo_entry import SIDE, Entry, LibraryEntry


def entries() -> tuple[Entry, ...]:
    """All networks of the sweep."""
    return (*_torchvision(), *_timm(), *libraries())


def libraries() -> Iterator[LibraryEntry]:
    """The networks of other libraries, of those that are installed, and whole detectors."""
    for library in (zoo_ultralytics, zoo_transformers, zoo_monai):
        with contextlib.suppress(ImportError):
            yield from library.entries()
    yield from _detectors()


# --- torchvision -----------------------------------------------------------------------------

_CLASSES_224 = ("alexnet", "maxvit", "swin", "vgg", "vit")
_ATTENTION = ("maxvit", "swin", "vit")
_FPN = ("fpn.layer_blocks", "fpn.extra_blocks")
_BACKBONES = {
    "fasterrcnn_resnet50_fpn": _FPN,
    "fasterrcnn_resnet50_fpn_v2": _FPN,
    "fasterrcnn_mobilenet_v3_large_fpn": _FPN,
    "fcos_resnet50_fpn": _FPN,
    "retinanet_resnet50_fpn": _FPN,
    "retinanet_resnet50_fpn_v2": _FPN,
    "ssd300_vgg16": ("features.21", "extra"),
    "ssdlite320_mobilenet_v3_large": ("features.0.13", "features.1", "extra"),
}
_DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 96,
    "fcos_resnet50_fpn": 96,
    "keypointrcnn_resnet50_fpn": 96,
    "maskrcnn_resnet50_fpn": 96,
    "retinanet_resnet50_fpn": 96,
    "ssdlite320_mobilenet_v3_large": 96,
}


def _torchvision() -> Iterator[Entry]:
    from torchvision import models

    for name in models.list_models(module=models):
        attention = name.startswith(_ATTENTION)
        side = 224 if name.startswith(_CLASSES_224) else SIDE
        options: tuple[tuple[str, object], ...] = ()
        if name in ("googlenet", "inception_v3"):
            side = 299 if name == "inception_v3" else 128
            options = (("init_weights", False),)
        yield Entry(
            f"torchvision:{name}",
            "torchvision classification",
            (3, side, side),
            attention,
            options=options,
            millions=models.get_model_weights(name).DEFAULT.meta["num_params"] / 1e6,
        )
    for name in models.list_models(module=models.segmentation):
        yield Entry(
            f"torchvision:{name}",
            "torchvision segmentation",
            options=(("weights_backbone", None),),
            millions=30.0,
        )
    for name in ("mc3_18", "r2plus1d_18", "r3d_18"):
        yield Entry(f"torchvision:{name}", "torchvision video", (3, 8, 64, 64))
    yield Entry("torchvision:s3d", "torchvision video", (3, 14, 224, 224))
    for name, outputs in _BACKBONES.items():
        side = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 160}.get(name, SIDE)
        yield Entry(
            f"torchvision:{name}/backbone",
            "torchvision detection and flow",
            (3, side, side),
            outputs=outputs,
        )
    for name in ("raft_large", "raft_small"):
        for part in ("feature_encoder", "context_encoder"):
            yield Entry(
                f"torchvision:{name}/{part}",
                "torchvision detection and flow",
                outputs=("conv",),
            )


def _detectors() -> Iterator[LibraryEntry]:
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


# --- timm ------------------------------------------------------------------------------------

_FAMILIES: dict[str, str] = {
    "byobnet": "bat_resnext26ts eca_resnet33ts eca_resnext26ts gcresnext26ts gernet_s mobileone_s0 "
    "regnetz_b16 regnetz_b16_evos repvgg_a0 repvgg_b1g4 resnet32ts resnet51q resnext26ts "
    "seresnet33ts test_byobnet",
    "convmixer": "convmixer_768_32",
    "convnext": "convnext_atto convnext_atto_ols convnext_atto_rms convnext_tiny_hnf "
    "convnext_zepto_rms_ols convnextv2_atto",
    "cspnet": "cs3darknet_focus_s cs3darknet_s cs3sedarknet_l cspdarknet53 cspresnet50 "
    "cspresnext50 darknet17 darknetaa53 sedarknet21",
    "cspnext": "cspnext_tiny",
    "densenet": "densenet121 densenetblur121d",
    "dla": "dla34 dla46_c dla46x_c dla60_res2net dla60_res2next",
    "dpn": "dpn48b dpn68",
    "efficientnet": "efficientnet_b0 efficientnet_b0_g16_evos efficientnet_b0_gn "
    "efficientnet_blur_b0 efficientnet_cc_b0_4e efficientnet_es efficientnet_lite0 "
    "efficientnetv2_rw_t fbnetc_100 gc_efficientnetv2_rw_t mixnet_s mnasnet_small "
    "mobilenet_edgetpu_100 mobilenet_edgetpu_v2_xs mobilenetv1_100 mobilenetv2_050 semnasnet_075 "
    "spnasnet_100 test_efficientnet tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s tinynet_e",
    "fasternet": "fasternet_t0",
    "fastvit": "fastvit_t8",
    "focalnet": "focalnet_tiny_srf",
    "ghostnet": "ghostnet_050 ghostnetv2_100 ghostnetv3_050",
    "hardcorenas": "hardcorenas_a",
    "hgnet": "hgnet_tiny hgnetv2_b0",
    "hrnet": "hrnet_w18_small",
    "inception_next": "inception_next_atto",
    "inception_resnet_v2": "inception_resnet_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "lcnetv2": "lcnetv2_small",
    "mambaout": "mambaout_femto",
    "metaformer": "convformer_s18 poolformer_s12 poolformerv2_s12",
    "mobilenetv3": "fbnetv3_b lcnet_035 mobilenetv3_rw mobilenetv3_small_050 "
    "mobilenetv4_conv_aa_medium mobilenetv4_conv_blur_medium mobilenetv4_conv_small_035 "
    "tf_mobilenetv3_small_minimal_100",
    "nasnet": "nasnetalarge",
    "nfnet": "dm_nfnet_f0 eca_nfnet_l0 nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nf_seresnet26 "
    "nfnet_l0 test_nfnet",
    "pnasnet": "pnasnet5large",
    "rdnet": "rdnet_tiny",
    "regnet": "regnetv_040 regnetx_002 regnety_002 regnety_040_sgn regnetz_005",
    "repghost": "repghostnet_050",
    "repvit": "repvit_m0_9",
    "res2net": "res2net50_14w_8s res2net50d res2next50",
    "resnest": "resnest14d resnest50d_1s4x24d",
    "resnet": "ecaresnet26t ecaresnetlight resnet10t resnet18d resnet50_gn resnetaa34d "
    "resnetblur18 resnetrs50 seresnext26d_32x4d seresnextaa101d_32x8d wide_resnet50_2",
    "resnetv2": "resnetv2_18 resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnetv2_50x1_bit",
    "rexnet": "rexnet_100 rexnetr_100",
    "selecsls": "selecsls42",
    "senet": "legacy_seresnet18 legacy_seresnext26_32x4d",
    "sknet": "skresnet18 skresnext50_32x4d",
    "starnet": "starnet_s1",
    "tresnet": "tresnet_m",
    "vgg": "vgg11 vgg11_bn",
    "vovnet": "eca_vovnet39b ese_vovnet19b_slim_dw ese_vovnet39b_evos vovnet39a",
    "xception": "legacy_xception",
    "xception_aligned": "xception41 xception41p",
}
_HYBRIDS: dict[str, str] = {
    "byoanet": "botnet26t_256 halonet26t lambda_resnet26t",
    "coat": "coat_lite_tiny",
    "cpubone": "cpubone_nano",
    "csatv2": "csatv2",
    "edgenext": "edgenext_xx_small",
    "efficientformer": "efficientformer_l1",
    "efficientformer_v2": "efficientformerv2_s0",
    "efficientvim": "efficientvim_m1",
    "efficientvit_mit": "efficientvit_b0",
    "efficientvit_msra": "efficientvit_m0",
    "gcvit": "gcvit_xxtiny",
    "iformer": "iformer_t",
    "levit": "levit_conv_128s",
    "lowformer": "lowformer_b0",
    "maxxvit": "coatnet_nano_rw_224",
    "mobilenetv3": "mobilenetv4_hybrid_medium_075",
    "mobilevit": "mobilevit_xxs mobilevitv2_050",
    "nextvit": "nextvit_small",
    "shvit": "shvit_s1",
    "swiftformer": "swiftformer_xs",
    "tiny_vit": "tiny_vit_5m_224",
    "visformer": "visformer_tiny",
}
_SIDES = {
    "bat_resnext26ts": 256,
    "inception_next": 128,
    "inception_resnet_v2": 139,
    "inception_v3": 139,
    "inception_v4": 139,
    "nasnet": 139,
    "pnasnet": 139,
    "vgg": 224,
}


def _timm() -> Iterator[Entry]:
    for family, names in _FAMILIES.items():
        for name in names.split():
            side = _SIDES.get(name, _SIDES.get(family, SIDE))
            yield Entry(f"timm:{name}", "timm", (3, side, side))
    for names in _HYBRIDS.values():
        for name in names.split():
            side = _native_side(name)
            yield Entry(f"timm:{name}", "timm hybrids with attention", (3, side, side), True)


def _native_side(name: str) -> int:
    import timm

    config = timm.get_pretrained_cfg(name)
    return 224 if config is None else int(config.input_size[-1])
