"""PyTorch's attention is traced as the products that it is made of, so that its heads can go."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from tests.support.law import at_random, choose, gap
from tests.support.topologies.base import randomised

IMAGES = torch.randn(2, 3, 6, 6, dtype=torch.float64)
WIDTH, HEADS = 24, 4


class Tokens(nn.Module):
    """A convolution, attention over its image, and a classifier."""

    def __init__(self, attend: nn.Module, first: bool = True) -> None:
        super().__init__()
        self.before, self.stem = nn.Conv2d(3, 12, 1), nn.Conv2d(12, WIDTH, 3, 2, 1)
        self.attend, self.first = attend, first
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.before(x).relu()).flatten(2)
        x = x.permute(0, 2, 1) if self.first else x.permute(2, 0, 1)
        return self.head((x + self.attend(x)).mean(1 if self.first else 0))


class Attention(nn.Module):
    """Calls PyTorch's attention in one of the ways that networks do."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor], **options: object) -> None:
        super().__init__()
        self.call = call
        self.ma = nn.MultiheadAttention(WIDTH, HEADS, **options)
        self.to_narrow = nn.Linear(WIDTH, 16)
        self.register_buffer("causal", torch.ones(9, 9, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def pooled(self: nn.Module, x: Tensor) -> Tensor:
    """As CLIP pools: the mean asks all positions, by the function itself."""
    ma: nn.MultiheadAttention = self.ma
    out, _ = F.multi_head_attention_forward(
        query=x.mean(0, keepdim=True),
        key=x,
        value=x,
        embed_dim_to_check=x.shape[-1],
        num_heads=HEADS,
        q_proj_weight=self.q,
        k_proj_weight=self.k,
        v_proj_weight=self.v,
        in_proj_weight=None,
        in_proj_bias=ma.in_proj_bias,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=ma.out_proj.weight,
        out_proj_bias=ma.out_proj.bias,
        use_separate_proj_weight=True,
        training=self.training,
        need_weights=False,
    )
    return out


def clip() -> nn.Module:
    net = Attention(pooled)
    net.q, net.k, net.v = (nn.Parameter(torch.randn(WIDTH, WIDTH) / 5) for _ in range(3))
    return net


def padded(self: nn.Module, x: Tensor) -> Tensor:
    late = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
    late[:, -1:] = True
    return self.ma(x, x, x, key_padding_mask=late, need_weights=False)[0]


def layer(kind: type[nn.Module], **options: object) -> nn.Module:
    return kind(WIDTH, HEADS, 32, batch_first=True, **options)


class Decoded(nn.Module):
    """A decoder whose memory is what it decodes."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x, x.flip(1))


WAYS: dict[str, Callable[[], nn.Module]] = {
    "one for all": lambda: Tokens(
        Attention(lambda m, x: m.ma(x, x, x, need_weights=False)[0], batch_first=True)
    ),
    "the sequence first": lambda: Tokens(Attention(lambda m, x: m.ma(x, x, x)[0]), first=False),
    "positions in queries and keys": lambda: Tokens(
        Attention(lambda m, x: m.ma(x.flip(1), x.flip(1), value=x)[0], batch_first=True)
    ),
    "keys and values": lambda: Tokens(
        Attention(lambda m, x: m.ma(x[:, :1], x, x)[0].expand(-1, 9, -1), batch_first=True)
    ),
    "keys of another width": lambda: Tokens(
        Attention(lambda m, x: m.ma(x, m.to_narrow(x), x)[0], batch_first=True, kdim=16, bias=False)
    ),
    "a mask": lambda: Tokens(
        Attention(lambda m, x: m.ma(x, x, x, attn_mask=m.causal)[0], batch_first=True)
    ),
    "a hint that the mask is causal": lambda: Tokens(
        Attention(
            lambda m, x: m.ma(x, x, x, None, False, m.causal, is_causal=True)[0], batch_first=True
        )
    ),
    "padding": lambda: Tokens(Attention(padded, batch_first=True)),
    "the function": lambda: Tokens(clip(), first=False),
    "a layer of an encoder": lambda: Tokens(layer(nn.TransformerEncoderLayer)),
    "an encoder": lambda: Tokens(nn.TransformerEncoder(layer(nn.TransformerEncoderLayer), 2)),
    "a decoder": lambda: Tokens(
        Decoded(nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 1))
    ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_heads_and_embedding_get_narrow(way: str) -> None:
    model = randomised(WAYS[way]()).double().eval()
    gated = fxprune.instrument(model, (IMAGES[:1],), "magnitude", round_to=1)
    assert [pin.reason for pin in gated.channels.pinned if "follow" in pin.reason] == []
    sizes = {group.name: group.size for group in gated.channels.groups}
    assert sizes["stem"] == WIDTH
    assert {size for name, size in sizes.items() if "q" in name or "in_proj" in name} <= {4, 6}
    for seed in range(3):
        gated.settle(at_random(gated.channels, seed))
        assert gap(gated(IMAGES), fxprune.shrink(gated)(IMAGES)) < 1e-12
    gated.settle(choose(gated.channels, gated.channels.layout.sizes, 1))
    assert gap(model(IMAGES), gated(IMAGES)) < 1e-12


@torch.no_grad()
def test_dropout_draws_what_the_model_draws() -> None:
    model = WAYS["one for all"]().double()
    model.attend.ma.dropout = 0.4
    gated = fxprune.instrument(model, (IMAGES,), budget="keep=1.0").train()
    torch.manual_seed(1)
    wanted = copy.deepcopy(model).train()(IMAGES)
    torch.manual_seed(1)
    assert gap(wanted, gated(IMAGES)) < 1e-12


@torch.no_grad()
def test_weights_that_are_used_are_computed() -> None:
    model = Tokens(
        Attention(
            lambda m, x: (
                m.ma(x, x, x)[1] @ x + m.ma(x, x, x, average_attn_weights=False)[1][:, 0] @ x
            ),
            batch_first=True,
        )
    )
    model = randomised(model).double().eval()
    gated = fxprune.instrument(model, (IMAGES,), round_to=1)
    gated.settle(choose(gated.channels, gated.channels.layout.sizes, 1))
    assert gap(model(IMAGES), gated(IMAGES)) < 1e-12


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
@torch.no_grad()
def test_what_only_pytorch_knows_stays_its_call(option: str) -> None:
    model = Tokens(Attention(lambda m, x: m.ma(x, x, x)[0], batch_first=True, **{option: True}))
    model = randomised(model).double().eval()
    gated = fxprune.instrument(model, (IMAGES,), round_to=1)
    gated.settle(at_random(gated.channels, 1))
    assert gap(gated(IMAGES), fxprune.shrink(gated)(IMAGES)) < 1e-12
    assert F.multi_head_attention_forward in {node.target for node in gated.graph.nodes}


def windows(x: Tensor, qkv: Tensor, projection: Tensor, heads: int) -> Tensor:
    """As torchvision's Swin: a function that its module keeps from torch.fx."""
    n, length, width = x.shape
    parts = F.linear(x, qkv).reshape(n, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    q, k, v = parts[0], parts[1], parts[2]
    y = (q @ k.transpose(-2, -1) * (width // heads) ** -0.5).softmax(-1) @ v
    return F.linear(y.transpose(1, 2).reshape(n, length, width), projection)


def counted(x: Tensor, weight: Tensor) -> Tensor:
    """What cannot be followed stays a call."""
    return F.linear(x, weight) * (1.0 if x.data_ptr() >= 0 else 2.0)


torch.fx.wrap("windows")
torch.fx.wrap("counted")


class Windows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.randn(3 * WIDTH, WIDTH) / 5)
        self.projection = nn.Parameter(torch.randn(WIDTH, WIDTH) / 5)
        self.last = nn.Parameter(torch.randn(WIDTH, WIDTH) / 5)

    def forward(self, x: Tensor) -> Tensor:
        return counted(windows(x, self.qkv, self.projection, HEADS), self.last)


@torch.no_grad()
def test_a_function_kept_from_fx_is_followed_where_it_takes_weights() -> None:
    model = Tokens(Windows()).double().eval()
    gated = fxprune.instrument(model, (IMAGES[:1],), round_to=1)
    targets = [node.target for node in gated.graph.nodes]
    assert counted in targets
    assert windows not in targets
    assert any("attend.qkv" in m.parameter for g in gated.channels.groups for m in g.members)
    for seed in range(3):
        gated.settle(at_random(gated.channels, seed))
        assert gap(gated(IMAGES), fxprune.shrink(gated)(IMAGES)) < 1e-12
    gated.settle(choose(gated.channels, gated.channels.layout.sizes, 1))
    assert gap(model(IMAGES), gated(IMAGES)) < 1e-12
