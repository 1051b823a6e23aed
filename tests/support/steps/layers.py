"""Steps that have weights: convolutions of every sort, norms, scales, linear layers."""

from tests.support.steps.writer import SIDE, WIDEST, Dice, Map, Writer, divisors


def conv(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """An ordinary convolution."""
    out, kernel = dice.width(x), dice.pick((1, 3, 3))
    options = dice.pick(("", ", bias=False", ", stride=2", ", dilation=2, padding=2"))
    if kernel == 1 and "dilation" in options:
        options = ""
    w.conv(x, out, kernel, options)


def grouped(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A grouped convolution; a depthwise one where the channels have no other divisor."""
    groups = dice.pick(divisors(x.channels))
    out = groups * dice.pick((max(1, min(x.channels, 12) // groups), 1, 2, 3))
    if out <= WIDEST:
        bias = dice.pick(("", ", bias=False"))
        w.conv(x, out, dice.pick((1, 3)), f"{bias}, groups={groups}")


def depthwise(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A depthwise convolution with a multiplier."""
    out = x.channels * dice.pick((1, 1, 1, 2, 3))
    if out <= WIDEST:
        bias = dice.pick(("", ", bias=False"))
        w.conv(x, out, 3, f"{bias}, groups={x.channels}{dice.pick(('', ', stride=2'))}")


def transposed(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A transposed convolution, plain, grouped or depthwise."""
    groups = dice.pick((1, x.channels, *divisors(x.channels)))
    out = groups * dice.pick((max(1, min(x.channels, 12) // groups), 1, 2, 3))
    twice = dice.flag() and 2 * x.side <= SIDE
    shape = "2, stride=2" if twice else dice.pick(("1", "3, padding=1"))
    if out <= WIDEST:
        options = dice.pick(("", ", bias=False")) + (f", groups={groups}" if groups > 1 else "")
        name = w.layer(f"nn.ConvTranspose2d({x.channels}, {out}, {shape}{options})", "conv")
        w.map(f"{name}({x})", out, 2 * x.side if twice else x.side)


def shared(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """A convolution or a norm that is called again, on x."""
    kinds = (w.convs, w.norms) if x.side > 1 else (w.convs,)  # no instance norm takes 1 x 1
    known = [call for channels, call in dice.pick(kinds) if channels == x.channels]
    if not known:
        w.conv(x, x.channels, 3)
        known = [w.convs[-1][1]]
        x = w.fit(other, x.channels, other.side)
    dice.pick(known)(x)


def tied(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A convolution of its own with the weight of another."""
    known = [shape for shape in w.weights if shape[0] == x.channels]
    if not known:
        return
    shape = dice.pick(known)
    pad = f", padding={shape[2] // 2}, bias=False"
    name = w.layer(f"nn.Conv2d({shape[0]}, {shape[1]}, {shape[2]}{pad})", "conv")
    w.setup(f"{name}.weight = {w.weights[shape]}.weight")
    w.map(f"{name}({x})", shape[1], x.side)


def functional(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """F.conv2d and its kin, with the network's own parameters, or with what is made of them."""
    out, kernel = dice.width(x), dice.pick((1, 3))
    style = dice.pick(tuple(range(9)))
    weight = w.parameter(out, x.channels, kernel, kernel)
    code = weight
    bias = f", {w.parameter(out)}" if style in (0, 4) else ""
    side = x.side
    if style == 1:  # two branches in one
        code = f"{weight} + {w.parameter(out, x.channels, kernel, kernel)}"
    elif style == 2:  # weight norm, by hand
        code = f"{weight} * {w.parameter(out)}.view(-1, 1, 1, 1)"
    elif style == 3:  # weight standardisation: mixes the input channels
        code = f"{weight} - {weight}.mean((1, 2, 3), keepdim=True)"
    elif style == 4:  # input channels have a scale
        code = f"{weight} * {w.parameter(x.channels)}.reshape(1, -1, 1, 1)"
    elif style == 5 and out > 1:  # each part of the weight by itself
        half = out // 2
        low = w.map(f"F.conv2d({x}, {weight}[:{half}], padding={kernel // 2})", half, side)
        high = f"F.conv2d({x}, {weight}[{half}:], padding={kernel // 2})"
        w.map(f"torch.cat([{low}, {high}], 1)", out, side)
        return
    elif style == 6:  # the weight is put together
        code = f"torch.cat([{weight}, {w.parameter(out, x.channels, kernel, kernel)}])"
        out *= 2
    elif style == 7:  # depthwise
        weight, out = w.parameter(x.channels, 1, kernel, kernel), x.channels
        code = f"{weight}, groups={x.channels}"
    elif style == 8:
        weight = w.parameter(x.channels, out, kernel, kernel)
        w.map(f"F.conv_transpose2d({x}, {weight}, padding={kernel // 2})", out, side)
        return
    w.map(f"F.conv2d({x}, {code}{bias}, padding={kernel // 2})", out, side)


def batch_norm(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Batch norm, and rarer norms that treat each channel by itself."""
    code = dice.pick(
        (
            "nn.BatchNorm2d({})",
            "nn.BatchNorm2d({})",
            "nn.BatchNorm2d({})",
            "nn.BatchNorm2d({}, affine=False)",
            "nn.InstanceNorm2d({}, affine=True)",
        )
    )
    if "Instance" in code and x.side == 1:
        return
    name = w.layer(code.format(x.channels), "norm")

    def call(operand: Map) -> Map:
        return w.like(operand, f"{name}({operand})")

    w.norms.append((x.channels, call))
    call(x)


def mixing_norm(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Norms whose statistics mix channels."""
    groups = dice.pick((1, *divisors(x.channels)))
    style = dice.pick(("group", "group", "layer", "functional"))
    if style == "group":
        name = w.layer(f"nn.GroupNorm({groups}, {x.channels})", "norm")
        w.like(x, f"{name}({x})")
    elif style == "layer":
        name = w.layer(f"nn.LayerNorm({x.channels})", "norm")
        w.like(x, f"{name}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)")
    else:
        scale = w.parameter(x.channels)
        code = f"F.layer_norm({x}.permute(0, 2, 3, 1), ({x.channels},), {scale})"
        w.like(x, f"{code}.permute(0, 3, 1, 2)")


def scale(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Layer scale, and a shift."""
    style = dice.pick((0, 1, 2, 3))
    if style == 0:
        w.like(x, f"{x} * {w.parameter(x.channels, 1, 1)}")
    elif style == 1:
        w.like(x, f"{x} + {w.parameter(x.channels)}.view(1, -1, 1, 1)")
    elif style == 2:
        w.like(x, f"{w.parameter(1, x.channels, 1, 1)} * {x}")
    else:
        w.like(x, f"{x} * {w.parameter(x.channels)}[:, None, None] + 0.5")


OPAQUE = """\
class Opaque(nn.Module):
    def __init__(self, width, out, style):
        super().__init__()
        self.width, self.style = width, style
        self.conv = nn.Conv2d(width, out, 1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x):
        if x.dtype == torch.int8:  # what symbolic tracing does not follow
            raise ValueError(x.shape)
        if self.style == 1:  # follows any width
            x = torch.cat([x[:, : x.shape[1] // 2].relu(), x[:, x.shape[1] // 2 :]], 1)
        if self.style == 2:  # follows no other width
            x = x.view(x.shape[0], self.width, -1).relu().view(x.shape)
        if self.style == 3:  # cuts at a place of its own
            x = torch.cat([x[:, 2:], x[:, :2]], 1)
        return self.norm(self.conv(x)).relu()


"""


def opaque(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A module that becomes a leaf of the graph: its code cannot be rewritten."""
    out, style = dice.width(x), dice.pick((0, 1, 2, 3))
    if style == 2:  # views ask for a layout
        x = w.like(x, f"{x}.contiguous()", view=True)
    w.helper(OPAQUE)
    w.map(f"{w.layer(f'Opaque({x.channels}, {out}, {style})')}({x})", out, x.side)


def excite(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Squeeze and excitation, in the ways it is written."""
    c, inner = x.channels, dice.pick((2, 1, 3, 4))
    style = dice.pick(tuple(range(6)))
    if style == 0:
        down = w.layer(f"nn.Conv2d({c}, {inner}, 1)", "conv")
        up = w.layer(f"nn.Conv2d({inner}, {c}, 1)", "conv")
        gate = f"{up}(F.relu({down}({x}.mean((2, 3), keepdim=True)))).sigmoid()"
    elif style == 5:  # efficient channel attention slides along the channels
        slide = w.layer("nn.Conv1d(1, 1, 3, padding=1, bias=False)", "conv")
        pooled = f"F.adaptive_avg_pool2d({x}, 1).squeeze(-1).transpose(-1, -2)"
        gate = f"{slide}({pooled}).transpose(-1, -2).unsqueeze(-1).sigmoid()"
    else:
        down = w.layer(f"nn.Linear({c}, {inner})", "fc")
        norm = w.layer(f"nn.BatchNorm1d({inner})", "norm")
        up = w.layer(f"nn.Linear({inner}, {c}, bias=False)", "fc")
        pooled = (
            f"{x}.mean((2, 3))",
            f"F.adaptive_max_pool2d({x}, 1).flatten(1)",
            f"F.adaptive_avg_pool2d({x}, 1).view({x}.size(0), {c})",
            f"{x}.amax((-2, -1))",
        )[style - 1]
        shape = (
            "[:, :, None, None]",
            f".view(-1, {c}, 1, 1)",
            f".view({x}.size(0), {x}.size(1), 1, 1)",
        )
        gate = f"torch.sigmoid({up}({norm}({down}({pooled})).relu())){dice.pick(shape)}"
    w.like(x, dice.pick((f"{x} * {gate}", f"{x} * {gate} + {x}", f"{gate}.expand_as({x}) * {x}")))


def dense(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Flattened, through a linear layer, and a map again."""
    c, side = dice.width(x), dice.pick((1, 2, 4))
    if x.size > 600 or c * side**2 > 100:
        return
    fc = w.layer(f"nn.Linear({x.size}, {c * side**2})", "fc")
    flat = dice.pick((f"{x}.flatten(1)", f"torch.flatten({x}, 1)", f"{x}.reshape({x}.size(0), -1)"))
    shape = dice.pick((f".view(-1, {c}, {side}, {side})", f".unflatten(1, ({c}, {side}, {side}))"))
    w.map(f"{fc}({flat}){shape}", c, side)


def pointwise_linear(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A linear layer at every place, channels last."""
    out = dice.width(x)
    if dice.flag():
        weight, bias = w.parameter(out, x.channels), w.parameter(out)
        code = f"F.linear({x}.permute(0, 2, 3, 1), {weight}, {bias})"
    else:
        code = f"{w.layer(f'nn.Linear({x.channels}, {out})', 'fc')}({x}.permute(0, 2, 3, 1))"
    w.map(f"{code}.permute(0, 3, 1, 2)", out, x.side)


KINDS = (
    *(conv, conv, conv, conv, conv, grouped, grouped, depthwise, transposed, shared, tied),
    *(functional, batch_norm, batch_norm, batch_norm, mixing_norm, scale, excite, dense),
    *(pointwise_linear, opaque),
)
