"""An example or more of every op rule: a small network around the op, and what has to be found."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.rules.base import Rule
from fxprune.rules.convolution import Convolution
from fxprune.rules.copies import Identity, New
from fxprune.rules.deformable import DeformableConvolution
from fxprune.rules.fake_quantisation import FakeQuantise, ObserveAndQuantise
from fxprune.rules.fourier import Fourier, Pairs
from fxprune.rules.indexing import Embedding, Gather, GridOfAffine, GridSample, Index, Scatter
from fxprune.rules.joins import Concatenate, ConstantPad, Stack
from fxprune.rules.matmul import Linear, MatMul, MatrixVector
from fxprune.rules.movement import ChannelShuffle, Movement
from fxprune.rules.norm import BatchNorm, GroupNorm, LayerNorm, Renorm, WeightNorm
from fxprune.rules.pointwise import GatedHalves, MaskedWrite, Pointwise
from fxprune.rules.reduction import Reduction, Softmax
from fxprune.rules.resample import MaxUnpool, Patches, Resample
from fxprune.rules.triangle import Triangle
from tests.support.topologies.base import randomised

Layers = Callable[[], tuple[nn.Module, ...]]


def inputs(batch: int = 2) -> tuple[Tensor]:
    """Images [batch, 3, 8, 8] for an example, float64."""
    generator = torch.Generator().manual_seed(batch)
    return (torch.randn(batch, 3, 8, 8, generator=generator, dtype=torch.float64),)


class Around(nn.Module):
    """A convolution to 8 channels, the op, a convolution to 4 channels, a classifier."""

    def __init__(self, op: Callable[..., Tensor], out: int, layers: Layers) -> None:
        super().__init__()
        self.stem, self.op = nn.Conv2d(3, 8, 3), op
        self.layers = nn.ModuleList(layers())
        self.tail, self.fc = nn.Conv1d(out, 4, 1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.op(torch.tanh(self.stem(x)), *self.layers)
        return self.fc(torch.tanh(self.tail(x.flatten(2))).mean(2))


class Places(nn.Module):
    """A buffer of numbers, one a channel."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.tensor(numbers))


@dataclass(frozen=True)
class Example:
    """An op in the middle of a network.

    Attributes:
        rule: whose example it is.
        name: for the test's id.
        op: from an activation [N, 8, 6, 6] and the layers to [N, out, …], three dimensions or more.
        out: the length of its dimension 1.
        groups: the sizes of the groups that have to be found, that of the tail's 4 included.
        pinned: how the reasons begin, in order, but for those of the network's two ends.
        layers: makes what the op needs.
        mixes: whether it mixes channels, so that a removed one is not the same as a zero column.
    """

    rule: type[Rule]
    name: str
    op: Callable[..., Tensor]
    out: int = 8
    groups: tuple[int, ...] = (8, 4)
    pinned: tuple[str, ...] = ()
    layers: Layers = tuple
    mixes: bool = False

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The network with drawn weights, in evaluation mode."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return randomised(Around(self.op, self.out, self.layers)).to(dtype).eval()


def one(kind: Callable[..., nn.Module], *args: Any, **options: Any) -> Layers:
    """A single layer."""
    return lambda: (kind(*args, **options),)


def run(x: Tensor, layer: nn.Module) -> Tensor:
    """The layer itself."""
    return layer(x)


def tokens(x: Tensor) -> Tensor:
    """[N, C, H, W] to [N, H W, C]."""
    return x.flatten(2).transpose(1, 2)


def attention(x: Tensor, q: nn.Module, k: nn.Module, v: nn.Module) -> Tensor:
    """Positions attend to each other; [N, C, L]."""
    x = tokens(x)
    weights = torch.softmax(q(x) @ k(x).transpose(1, 2), dim=2)
    return torch.bmm(weights, v(x)).transpose(1, 2)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """A constant where the mask is true."""
    x = x.clone()
    x[mask] = 0.5
    return x


def baddbmm(x: Tensor, layer: nn.Module) -> Tensor:
    """A linear layer over the channels, by another name."""
    weight = layer.weight.t().expand(x.shape[0], -1, -1)
    return torch.baddbmm(layer.bias, tokens(x), weight).transpose(1, 2)


def dynamic(x: Tensor, layer: nn.Module) -> Tensor:
    """Correlation with a template computed from the first example."""
    template = layer(x[:1].mean((2, 3)))[:, :, None, None]
    return F.conv2d(x, template).expand(-1, 4, -1, -1)


def kernel_each(x: Tensor, layer: nn.Module) -> Tensor:
    """Kernels computed from each example, in a convolution with a conv group an example."""
    n, c, height, width = x.shape
    kernels = layer(x.mean((2, 3))).view(-1, c, 1, 1)
    out = F.conv2d(x.reshape(1, -1, height, width), kernels, groups=n)
    return out.view(n, 4, out.shape[2], out.shape[3])


def swap_halves(x: Tensor) -> Tensor:
    """The second half of the channels first."""
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, a], dim=1)


CONVOLUTION = (
    Example(
        Convolution,
        "strided and dilated",
        run,
        6,
        (8, 6, 4),
        layers=one(nn.Conv2d, 8, 6, 3, stride=2, dilation=2, padding=2),
    ),
    Example(
        Convolution,
        "padded by reflection",
        run,
        6,
        (8, 6, 4),
        layers=one(nn.Conv2d, 8, 6, 3, padding=1, padding_mode="reflect"),
    ),
    Example(
        Convolution,
        "one output channel",
        lambda x, gate: x * gate(x).sigmoid(),
        layers=one(nn.Conv2d, 8, 1, 3, padding=1),
    ),
    Example(
        Convolution,
        "transposed",
        run,
        6,
        (8, 6, 4),
        layers=one(nn.ConvTranspose2d, 8, 6, 2, stride=2),
    ),
    Example(
        Convolution,
        "depthwise transposed",
        run,
        layers=one(nn.ConvTranspose2d, 8, 8, 2, stride=2, groups=8),
    ),
    Example(
        Convolution,
        "transposed of few conv groups",
        run,
        6,
        (4, 3, 4),
        layers=one(nn.ConvTranspose2d, 8, 6, 2, groups=2),
    ),
    Example(
        Convolution,
        "by function, transposed of few conv groups",
        lambda x, layer: F.conv_transpose2d(x, layer.weight, layer.bias, groups=2),
        6,
        (4, 3, 4),
        layers=one(nn.ConvTranspose2d, 8, 6, 2, groups=2),
    ),
    Example(
        Convolution,
        "by function, grouped",
        lambda x, layer: F.conv2d(x, layer.weight, layer.bias, 1, 0, 1, 2),
        6,
        (4, 3, 4),
        layers=one(nn.Conv2d, 8, 6, 3, groups=2),
    ),
    Example(
        Convolution,
        "by function, depthwise, by keywords",
        lambda x, layer: F.conv2d(x, weight=layer.weight, groups=8, padding=1),
        layers=one(nn.Conv2d, 8, 8, 3, groups=8),
    ),
)

MATMUL = (
    Example(
        Linear,
        "over the channels",
        lambda x, layer: layer(tokens(x)).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Linear, 8, 6),
    ),
    Example(
        Linear,
        "over positions",
        lambda x, layer: layer(x.flatten(2)),
        8,
        (8, 7, 4),
        ("it meets a dimension of fixed size in a matrix product",),
        layers=one(nn.Linear, 36, 7),
        mixes=True,  # the mean over what the layer makes
    ),
    Example(
        MatMul,
        "attention",
        attention,
        6,
        (8, 7, 6, 4),
        layers=lambda: (nn.Linear(8, 7), nn.Linear(8, 7), nn.Linear(8, 6)),
        mixes=True,
    ),
    Example(
        Convolution,
        "by a kernel of each example",
        dynamic,
        4,
        (8, 4, 4),
        mixes=True,
        layers=one(nn.Linear, 8, 8),
    ),
    Example(
        Convolution,
        "with a conv group an example",
        kernel_each,
        4,
        (4,),
        ("a grouped convolution over channels of fixed number",) * 2,
        layers=one(nn.Linear, 8, 32),
    ),
    Example(
        MatMul,
        "linear as a function",
        lambda x, layer: F.linear(tokens(x), layer.weight, layer.bias).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Linear, 8, 6),
    ),
    Example(MatMul, "baddbmm", baddbmm, 6, (8, 6, 4), layers=one(nn.Linear, 8, 6)),
    Example(
        MatMul,
        "by a raw matrix",
        lambda x, layer: (tokens(x) @ layer.weight).transpose(1, 2),
        6,
        (8, 6, 4),
        layers=one(nn.Linear, 6, 8, bias=False),
    ),
)

MOVEMENT = (
    Example(
        Movement, "channels last", lambda x: x.permute(0, 2, 3, 1).flatten(1).unsqueeze(2), 288
    ),
    Example(Movement, "flip", lambda x: x.flip(1)),
    Example(Movement, "flip and roll in space", lambda x: x.roll(1, 3).flip(2)),
    Example(Movement, "roll", lambda x: x.roll(3, 1)),
    Example(
        Movement, "roll back, by keywords", lambda x: torch.roll(x, shifts=(-3, 1), dims=(1, 2))
    ),
    # even and odd channels fall together, four positions each, and keep their order
    Example(Movement, "turned", lambda x: torch.rot90(x, 1, (2, 3))),
    Example(Movement, "roll and add", lambda x: x.roll(2, 1).tanh() + x, groups=(2, 4)),
    Example(Movement, "swap halves", swap_halves, groups=(4, 4, 4)),
    Example(Movement, "repeat", lambda x: x.repeat(1, 2, 1, 1), 16),
    Example(
        Movement,
        "expand to literal sizes",
        lambda x: x.mean((2, 3), keepdim=True).expand(x.shape[0], 8, 6, 6),
    ),
    Example(
        Movement,
        "one channel beside all of them",
        lambda x: x * x.select(1, 6).unsqueeze(1) + torch.select(x, -3, -5).unsqueeze(1),
        groups=(6, 4),
        pinned=("a single channel fills the whole dimension",) * 2,
    ),
    Example(
        Movement,
        "squeezed of what is 1",
        lambda x: x.mean((2, 3), keepdim=True).squeeze()[..., None] * x.squeeze(1).flatten(2),
    ),
    Example(
        Movement,
        "unflattened to the sizes of another",
        lambda x: x.flatten(2).tanh().unflatten(2, x.shape[2:]),
    ),
    Example(Movement, "one position", lambda x: x[:, :, 2]),
    Example(
        WeightNorm,
        "of a convolution",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),),
    ),
    Example(Patches, "windows", lambda x: F.unfold(x, 3), 72),
    Example(Patches, "and back", lambda x: F.fold(F.unfold(x, 2).tanh(), 6, 2)),
    Example(MaskedWrite, "rectified", lambda x: masked(x, x < 0.1)),
    Example(
        MaskedWrite,
        "some examples",
        lambda x: masked(x, torch.arange(x.shape[0]) == 1),
    ),
    Example(
        MaskedWrite,
        "by numbers",
        lambda x: x.index_put((torch.tensor([0]), torch.tensor([2])), x.new_zeros(())),
        groups=(4,),
        pinned=("it is written by numbers of places",),
    ),
    Example(Movement, "narrow", lambda x: x.narrow(1, 2, 4), 4, (4, 4, 4)),
    Example(Movement, "unflatten", lambda x: x.unflatten(1, (2, 4)).sum(1), 4, (4, 4)),
    Example(
        Movement,
        "unflatten module",
        lambda x, m: m(x).sum(2),
        4,
        (4, 4),
        layers=one(nn.Unflatten, 1, (4, 2)),
    ),
    Example(Movement, "pixel unshuffle", lambda x: F.pixel_unshuffle(x, 2), 32),
    Example(ChannelShuffle, "module", run, 8, (4, 4), layers=one(nn.ChannelShuffle, 2)),
    Example(ChannelShuffle, "function", lambda x: F.channel_shuffle(x, 4), 8, (2, 4)),
    Example(Movement, "reflection pad", lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect")),
    Example(Movement, "replication pad", lambda x: F.pad(x, (1, 1, 2, 2), mode="replicate")),
    Example(Movement, "unbind in space", lambda x: x.unbind(3)[1] + x.unbind(3)[2]),
    Example(
        Concatenate,
        "with itself",
        lambda x: torch.cat([x, x.tanh()], dim=1),
        16,
    ),
    Example(Concatenate, "in space", lambda x: torch.cat([x, x.tanh()], dim=2)),
    Example(
        Concatenate,
        "with a tensor of fixed size",
        lambda x: torch.cat([x, x.mean(1, keepdim=True)], dim=1),
        9,
        pinned=("they are concatenated from a tensor of fixed size",),
        mixes=True,
    ),
    Example(
        Concatenate,
        "in space with a tensor of fixed size",
        lambda x: torch.cat([x, x.new_ones(x.shape[0], 8, 1, 6)], dim=2),
        groups=(4,),
        pinned=("it is concatenated with a tensor of fixed size",),
    ),
    Example(Stack, "summed", lambda x: torch.stack([x, x.tanh()], dim=1).sum(1)),
    Example(Stack, "in a new last dimension", lambda x: torch.stack((x, x.tanh()), dim=-1)),
    Example(
        Stack,
        "with a tensor of fixed size",
        lambda x: torch.stack([x, x.new_ones(x.shape[0], 8, 6, 6)]).sum(0),
        groups=(4,),
        pinned=("it is stacked with a tensor of fixed size",),
    ),
    Example(
        Gather,
        "from channels",
        lambda x, places: x.index_select(1, places.numbers),
        3,
        (4,),
        ("its channels are chosen by their numbers",) * 2,  # and the numbers stay as well
        layers=one(Places, 5, 0, 5),
    ),
    Example(
        Gather,
        "from a fixed number of positions",
        lambda x, places: x.flatten(2).index_select(2, places.numbers),
        layers=one(Places, 30, 2, 2, 8, 0),
        mixes=True,  # the mean over what is taken
    ),
    Example(
        Scatter,
        "into a fixed number of channels",
        lambda x, places: x.new_zeros(x.shape[0], 9, 6, 6).index_copy(1, places.numbers, x),
        9,
        layers=one(Places, 8, 3, 0, 1, 4, 5, 7, 6),
        mixes=True,
    ),
    Example(New, "broadcast", lambda x: x * x.new_full((1, 1, 6, 6), 2.0)),
    Example(
        New,
        "of the channels' number",
        lambda x: x * x.new_ones(8, 1, 1),
        groups=(4,),
        pinned=("it is combined with a tensor of fixed size",),
    ),
    Example(ConstantPad, "in space", lambda x: F.pad(x, (1, 0, 2, -1), value=0.3)),
    Example(
        ConstantPad, "one channel", lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=0.3), 9, (8, 4, 1)
    ),
    Example(
        ConstantPad,
        "negative",
        lambda x: F.pad(x, (0, 0, 0, 0, -1, -1)),
        6,
        (4,),
        ("padding by a negative amount cuts channels off",),
    ),
    Example(
        Identity,
        "copies and constants in its likeness",
        lambda x: x.clone() * torch.full_like(x, 2.0) + torch.zeros_like(x),
    ),
    Example(Identity, "to another dtype and back", lambda x: x.to(torch.float32).to(torch.float64)),
)

NORM = (
    Example(BatchNorm, "affine", run, layers=one(nn.BatchNorm2d, 8)),
    Example(BatchNorm, "without scale", run, layers=one(nn.BatchNorm2d, 8, affine=False)),
    Example(
        BatchNorm,
        "of the batch's statistics",
        run,
        layers=one(nn.BatchNorm2d, 8, track_running_stats=False),
    ),
    Example(BatchNorm, "of each instance", run, layers=one(nn.InstanceNorm2d, 8, affine=True)),
    Example(
        LayerNorm,
        "over the channels",
        lambda x, norm: norm(tokens(x)).transpose(1, 2),
        layers=one(nn.LayerNorm, 8),
        mixes=True,
    ),
    Example(
        LayerNorm,
        "by function, over the channels",
        lambda x: F.layer_norm(tokens(x), (8,)).transpose(1, 2),
        mixes=True,
    ),
    Example(LayerNorm, "over space", lambda x: F.layer_norm(x, (6, 6))),
    Example(GroupNorm, "of two groups", run, 8, (4, 4), layers=one(nn.GroupNorm, 2, 8), mixes=True),
    Example(GroupNorm, "a group for each channel", run, layers=one(nn.GroupNorm, 8, 8)),
    Example(GroupNorm, "groups of two channels", run, 8, (4, 4), layers=one(nn.GroupNorm, 4, 8)),
    Example(
        GroupNorm,
        "groups that go whole, without a scale",
        run,
        8,
        (4, 4),
        layers=one(nn.GroupNorm, 4, 8, affine=False),
    ),
    Example(GroupNorm, "by function", lambda x: F.group_norm(x, 4), 8, (4, 4)),
    Example(GroupNorm, "of one group", run, layers=one(nn.GroupNorm, 1, 8), mixes=True),
)

POINTWISE = (
    Example(Pointwise, "broadcast", lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()),
    Example(Pointwise, "where", lambda x: torch.where(x > 0, x, 0.1 * x)),
    Example(Pointwise, "masked fill", lambda x: x.masked_fill(x < 0, 0.5)),
    Example(Pointwise, "lerp", lambda x: torch.lerp(x, x.exp(), 0.3)),
    Example(Pointwise, "in place", lambda x: F.hardswish(x.clone(), inplace=True).mul_(2).add_(x)),
    Example(
        Pointwise, "activations", lambda x: F.gelu(x) + F.mish(x) + F.relu6(x) + F.logsigmoid(x)
    ),
    Example(Pointwise, "prelu", run, layers=one(nn.PReLU, 8)),
    Example(
        Pointwise,
        "a constant of each channel",
        lambda x: x * torch.linspace(1, 2, 8)[:, None, None],
    ),
    Example(GatedHalves, "glu", lambda x: F.glu(x, dim=1), 4, (4, 4)),
    Example(GatedHalves, "glu in space", lambda x: F.glu(x, dim=3)),
)

REDUCTION = (
    Example(Reduction, "spread in space", lambda x: x / x.std((2, 3), keepdim=True)),
    Example(Reduction, "largest in a row", lambda x: x.max(dim=3).values + x.amax(2)),
    Example(Reduction, "over the channels", lambda x: x * x.mean(1, keepdim=True), mixes=True),
    Example(
        Reduction,
        "normalised channels",
        lambda x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True),
        mixes=True,
    ),
    Example(
        Reduction,
        "normalised channels, expanded",
        lambda x: F.normalize(x, dim=1),
        mixes=True,
    ),
    Example(
        Reduction,
        "over everything",
        lambda x: x / x.square().sum((1, 2, 3), keepdim=True),
        mixes=True,
    ),
    Example(Softmax, "over space", lambda x: torch.softmax(x.flatten(2), dim=2)),
    Example(
        Softmax,
        "over the channels",
        lambda x: torch.softmax(x, dim=1),
        groups=(4,),
        pinned=("a softmax normalises over these channels",),
    ),
)

_POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "avg_pool3d": lambda x: F.avg_pool3d(x.unsqueeze(2), (1, 2, 2)),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool3d": lambda x: F.max_pool3d(x.unsqueeze(2), (1, 2, 2)),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 5),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, 3),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, size=(7, 9), mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    "bicubic, antialiased": lambda x: F.interpolate(x, size=4, mode="bicubic", antialias=True),
    "linear": lambda x: F.interpolate(x.flatten(2), scale_factor=2, mode="linear"),
    "trilinear": lambda x: F.interpolate(x.unsqueeze(2), scale_factor=2, mode="trilinear"),
}

RESAMPLE = (
    *(Example(Resample, name, op) for name, op in _POOLS.items()),
    Example(
        Resample,
        "along the channels",
        lambda x: F.max_pool1d(tokens(x), 2),
        36,
        (4,),
        ("it is resampled along this dimension",),
    ),
)


def rounded(w: Tensor) -> Tensor:
    """Rounded with a scale for each row."""
    scales, zeros = torch.linspace(0.1, 0.2, 6), torch.zeros(6, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(w.float(), scales, zeros, 0, -128, 127).double()


class Rows(nn.Module):
    """A convolution of which a function of the weight is used."""

    def __init__(self, weight: Callable[[Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight, self.change = nn.Parameter(torch.randn(shape)), weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.change(self.weight))


def conditional(x: Tensor, table: nn.Module) -> Tensor:
    """A scale from a table, by numbers."""
    return x * table(torch.zeros(x.shape[0], dtype=torch.int64))[:, :, None, None].sigmoid()


def unpooled(x: Tensor) -> Tensor:
    """Pooled, and back."""
    y, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y.tanh(), places, 2)


def warped(x: Tensor, layer: nn.Module) -> Tensor:
    """A spatial transformer."""
    theta = layer(x.mean((2, 3))).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, False), align_corners=False)


def deformed(x: Tensor, offsets: nn.Module, conv: nn.Module) -> Tensor:
    """A deformable convolution with offsets of two groups."""
    return torchvision.ops.deform_conv2d(x, offsets(x), conv.weight, conv.bias)


def observed(x: Tensor, state: nn.Module) -> Tensor:
    """Rounded by the smallest and largest value of each channel."""
    s = state
    return torch.fused_moving_avg_obs_fake_quant(
        x.float(), s.no, s.yes, *s.floats(), s.zero, 0.01, 0, 255, 1, True, False
    ).double()


class Observed(nn.Module):
    """What an observer keeps of each channel."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("no", "yes"):
            self.register_buffer(name, torch.tensor([int(name == "yes")]))
        for name in ("low", "high", "scale"):
            self.register_buffer(name, torch.rand(8) + 0.5)
        self.register_buffer("zero", torch.zeros(8, dtype=torch.int32))

    def floats(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the op takes, which knows no doubles."""
        return self.low.float(), self.high.float(), self.scale.float()


MORE = (
    Example(
        MatrixVector,
        "spectral norm",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 6, 3)),),
    ),
    Example(
        MatrixVector,
        "a filter as a vector",
        lambda x, w: x * torch.mv(x.mean((2, 3)), w.weight.view(-1)).sigmoid()[:, None, None, None],
        layers=one(nn.Linear, 8, 1, bias=False),
    ),
    Example(
        Renorm,
        "of a weight",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (Rows(lambda w: w.renorm(2, 0, 1.0), 6, 8, 3, 3),),
    ),
    Example(Renorm, "of an activation", lambda x: x.renorm(2, 0, 1.0), mixes=True),
    Example(
        Triangle,
        "of a weight",
        run,
        6,
        (4,),
        ("a triangle of a matrix is taken here",) * 2,
        layers=lambda: (Rows(lambda w: w.tril()[:, :, None, None], 6, 8),),
    ),
    Example(Triangle, "of an image", lambda x: x.triu(1)),
    Example(MaxUnpool, "in two dimensions", unpooled),
    Example(Movement, "split at once", lambda x: torch.unsafe_split(x, 4, 1)[1], 4, (4, 4, 4)),
    Example(Movement, "chunked at once", lambda x: sum(x.unsafe_chunk(2, 1)), 4, (4, 4)),
    Example(Index, "by a list", lambda x: x[:, [6, 1, 1, 4]].tanh(), 4, (5, 1, 2, 4)),
    Example(
        Index,
        "by a list, turned",
        lambda x: x[:, [4, 5, 6, 7, 0, 1, 2, 3]] + x,
        groups=(4, 4),
    ),
    Example(
        Index,
        "by a buffer",
        lambda x, places: x[:, places.numbers],
        3,
        (4, 3),  # the numbers themselves can go
        ("they are chosen by their numbers",),
        layers=one(Places, 5, 0, 5),
    ),
    Example(
        Index,
        "in space, by a buffer",
        lambda x, places: x[:, :, places.numbers],
        layers=one(Places, 5, 0),
        mixes=True,  # the mean over what is taken
    ),
    Example(
        Linear,
        "of a recurrent layer",
        lambda x, layer: layer(tokens(x))[0].transpose(1, 2),
        6,
        (8, 4),
        ("it meets a dimension of fixed size in a matrix product",),
        layers=one(nn.GRU, 8, 6, batch_first=True),
    ),
    Example(Embedding, "a scale for each class", conditional, layers=one(nn.Embedding, 5, 8)),
    Example(
        GridSample,
        "by offsets",
        lambda x, conv: F.grid_sample(x, conv(x).tanh().permute(0, 2, 3, 1), align_corners=False),
        8,
        (8, 4),
        ("they are coordinates",),
        layers=one(nn.Conv2d, 8, 2, 1),
    ),
    Example(
        GridOfAffine,
        "a spatial transformer",
        warped,
        8,
        (8, 4),
        ("they are the numbers of an affine map",),
        layers=one(nn.Linear, 8, 6),
    ),
    Example(Fourier, "in space", lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=(6, 6))),
    Example(
        Fourier,
        "along the channels",
        lambda x: torch.fft.fft(x, dim=1).real,
        8,
        (4,),
        ("a Fourier transform runs along this dimension",),
    ),
    Example(
        Pairs,
        "there and back",
        lambda x: torch.view_as_complex(x.unflatten(3, (3, 2)).contiguous()).abs(),
    ),
    Example(
        DeformableConvolution,
        "two groups of offsets",
        deformed,
        6,
        (4, 6, 4),
        ("they move the positions of a kernel",),
        layers=lambda: (nn.Conv2d(8, 36, 3), nn.Conv2d(8, 6, 3)),
    ),
    Example(
        DeformableConvolution,
        "depthwise",
        deformed,
        8,
        (8, 4),
        ("they move the positions of a kernel",),
        layers=lambda: (nn.Conv2d(8, 18, 3), nn.Conv2d(8, 8, 3, groups=8)),
    ),
    Example(
        FakeQuantise,
        "by one scale",
        lambda x: torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 3, 0, 255).double(),
    ),
    Example(
        FakeQuantise,
        "of a weight, each row by itself",
        run,
        6,
        (8, 6, 4),
        layers=lambda: (
            Rows(
                rounded,
                *(6, 8, 3, 3),
            ),
        ),
    ),
    Example(ObserveAndQuantise, "each channel by itself", observed, layers=one(Observed)),
    Example(
        Resample,
        "local response norm",
        run,
        layers=one(nn.LocalResponseNorm, 3, 0.5),
        mixes=True,
    ),
    Example(
        Reduction,
        "root mean square",
        lambda x, n: n(tokens(x)).transpose(1, 2),
        layers=one(nn.RMSNorm, 8),
        mixes=True,
    ),
    Example(
        Reduction,
        "root mean square, by function",
        lambda x: F.rms_norm(tokens(x), (8,)).transpose(1, 2),
        mixes=True,
    ),
)

EXAMPLES = (*MORE, *CONVOLUTION, *MATMUL, *MOVEMENT, *NORM, *POINTWISE, *REDUCTION, *RESAMPLE)
