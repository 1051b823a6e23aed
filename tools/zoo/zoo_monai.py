"""The convolutional networks of monai in two and three dimensions, small."""

from collections.abc import Callable, Iterator

from torch import nn
from zoo_entry import LibraryEntry


def entries() -> Iterator[LibraryEntry]:
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
