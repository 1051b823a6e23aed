"""Steps without weights on one map: activations, pools, and what moves or cuts channels."""

from tests.support.steps.writer import SIDE, WIDEST, Dice, Map, Writer, divisors

MODULES = (
    "nn.ReLU()",
    "nn.ReLU(inplace=True)",
    "nn.PReLU({})",
    "nn.SiLU(inplace=True)",
    "nn.Hardswish()",
    "nn.Sigmoid()",
    "nn.LeakyReLU(0.1, inplace=True)",
    "nn.GELU()",
    "nn.ELU()",
    "nn.PReLU()",
    "nn.Dropout(0.2)",
    "nn.Dropout2d(0.2)",
)
CALLS = (
    "F.relu({})",
    "{}.relu()",
    "F.relu({}, inplace=True)",
    "{}.relu_()",
    "torch.tanh({})",
    "{0} * torch.sigmoid({0})",
    "F.hardtanh({}, -1.0, 2.0)",
    "{}.clamp(min=-0.5, max=2.0)",
    "torch.where({0} > 0, {0}, 0.1 * {0})",
    "F.softplus({}) - 1",
    "-{}.abs()",
    "F.mish({})",
)


def module(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """An activation module, a new one or one that is there already."""
    code = dice.pick(MODULES).format(x.channels)
    if "inplace" in code and not x.ours:
        return
    known = w.activations.get(code)
    name = known if known and dice.flag() else w.layer(code, "act")
    w.activations[code] = name
    w.like(x, f"{name}({x})", view="inplace" in code)


def activation(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """An activation function."""
    code = dice.pick(CALLS)
    inplace = "inplace" in code or "relu_" in code
    if x.ours or not inplace:
        w.like(x, code.format(x), view=inplace)


def pool(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A pool, of a window or of everything."""
    half, style = x.side // 2, dice.pick(tuple(range(6)))
    if not half:
        return
    if style == 5 or (style > 2 and x.side % 2):
        w.map(f"{x}.mean((-1, -2), keepdim=True)", x.channels, 1)
    elif style == 4:
        w.map(f"{x}[:, :, ::2, ::2]", x.channels, half, view_of=x)
    elif style == 3:
        w.map(f"{w.layer('nn.MaxPool2d(3, 2, 1)', 'pool')}({x})", x.channels, half)
    else:
        code = ("F.max_pool2d({}, 2)", "F.avg_pool2d({}, 2)", "F.adaptive_avg_pool2d({}, {})")
        w.map(code[style].format(x, half), x.channels, half)


def upsample(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Twice the size."""
    if 2 * x.side <= SIDE:
        code = dice.pick(
            (
                f"F.interpolate({x}, scale_factor=2)",
                f"F.interpolate({x}, scale_factor=2, mode='bilinear')",
                f"F.interpolate({x}, size=({2 * x.side}, {2 * x.side}))",
                f"{x}.repeat_interleave(2, 2).repeat_interleave(2, 3)",
            )
        )
        w.map(code, x.channels, 2 * x.side)


def pixels(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Channels to places or back."""
    module = dice.flag()
    if x.channels % 4 == 0 and 2 * x.side <= SIDE:
        name = w.layer("nn.PixelShuffle(2)") if module else ""
        code = f"{name}({x})" if module else f"F.pixel_shuffle({x}, 2)"
        w.map(code, x.channels // 4, 2 * x.side)
    elif x.side % 2 == 0 and 4 * x.channels <= WIDEST:
        code = f"F.pixel_unshuffle({x}, 2)"
        if module:
            parts = ", ".join(f"{x}[..., {i}::2, {j}::2]" for i in (0, 1) for j in (0, 1))
            code = f"torch.cat([{parts}], 1)"
        w.map(code, 4 * x.channels, x.side // 2)


def cut(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Parts of the channels, which go their own ways."""
    c = x.channels
    style = dice.pick(tuple(range(11)))
    at = 1 + dice.pick(tuple(range(max(c - 1, 1))))
    if c == 1:
        return
    several = {
        0: (f"{x}.chunk(2, 1)", _parts(c, -(-c // 2))),
        1: (f"torch.split({x}, [{at}, {c - at}], dim=1)", (at, c - at)),
        2: (f"{x}.split({at}, 1)", _parts(c, at)),
        3: (f"torch.chunk({x}, 3, dim=1)", _parts(c, -(-c // 3))),
        4: (f"{x}.tensor_split(2, 1)", (-(-c // 2), c // 2)),
        9: (f"{x}.split({x}.size(1) // 2, dim=1)", _parts(c, c // 2)),
    }
    if style in several:
        code, sizes = several[style]
        parts = w.variable(code)
        for number, size in enumerate(sizes):
            w.map(f"{parts}[{number}]", size, x.side, view_of=x)
        x.base.kept = True  # PyTorch refuses one of several views after a change, in training
        return
    code, size = {
        5: (f"{x}[:, :{at}]", at),
        6: (f"{x}[:, -{at}:]", at),
        7: (f"{x}[:, {at % 2}::2]", (c + 1 - at % 2) // 2),
        8: (f"{x}.narrow(1, {c - at}, {at})", at),
        10: (f"{x}[:, : {x}.shape[1] // 2]", c // 2),
    }[style]
    w.map(code, size, x.side, view_of=x)
    if dice.flag():
        rest = {
            5: (f"{x}[:, {at}:, ...]", c - at),
            7: (f"{x}[:, {1 - at % 2}::2]", (c + at % 2) // 2),
            10: (f"{x}[:, {x}.size(1) // 2 :]", c - c // 2),
        }
        if style in rest:
            w.map(*rest[style], x.side, view_of=x)


def move(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """The same channels at other places."""
    order = list(range(0, x.channels, 2)) + list(range(1, x.channels, 2))
    code = dice.pick(
        (
            f"{x}.flip(1)",
            f"{x}.roll(1, 1)",
            f"{x}[:, {order}]",
            f"torch.roll({x}, 2, dims=1)",
            f"{x}.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)",
            f"{x}.flatten(2).transpose(1, 2).reshape({x}.size(0), {x.side}, {x.side}, -1)"
            ".permute(0, 3, 1, 2)",
            f"{x}.transpose(2, 3)",
            f"torch.rot90({x}, 1, (2, 3))",
            f"F.fold(F.unfold({x}, 3, padding=1), {x.side}, 3, padding=1)",
        )
    )
    w.like(x, code, view=True)


def shuffle(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A channel shuffle, in the ways it is written."""
    groups, style = dice.pick(divisors(x.channels)), dice.pick(tuple(range(6)))
    c, s, g = x.channels, x.side, groups
    if style == 0:
        n = w.variable(f"{x}.size(0)")
        code = f"{x}.view({n}, {g}, {c // g}, {s}, {s}).transpose(1, 2).contiguous()"
        w.like(x, f"{code}.view({n}, {c}, {s}, {s})")
    elif style == 1:
        sizes = w.variable(f"{x}.size()")
        n, d, h, v = (f"{sizes}[{i}]" for i in range(4))
        code = f"{x}.reshape({n}, {g}, {d} // {g}, {h}, {v}).permute(0, 2, 1, 3, 4)"
        w.like(x, f"{code}.reshape({n}, {d}, {h}, {v})")
    elif style == 2:
        code = f"{x}.reshape({x}.shape[0], {g}, -1, {x}.shape[2], {x}.shape[3])"
        w.like(x, f"{code}.transpose(1, 2).flatten(1, 2)")
    elif style == 3:
        code = f"{x}.reshape(-1, {g}, {c // g}, {s}, {s})"
        w.like(x, f"torch.transpose({code}, 1, 2).reshape(-1, {c}, {s}, {s})")
    elif style == 4:
        w.like(x, f"{w.layer(f'nn.ChannelShuffle({g})')}({x})")
    else:
        w.like(x, f"{x}.unflatten(1, ({g}, -1)).transpose(1, 2).flatten(1, 2)")


def pad(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Channels of a constant beside the others."""
    left, right = dice.pick((0, 1, 2)), dice.pick((1, 2, 3))
    value = dice.pick(("", ", value=0.5"))
    total = x.channels + left + right
    if total > WIDEST:
        return
    if dice.flag():
        zeros = w.variable(f"{x}.new_zeros({x}.size(0), {left + right}, {x.side}, {x.side})")
        w.map(f"torch.cat([{x}, {zeros}], 1)", total, x.side)
        return
    w.map(f"F.pad({x}, (0, 0, 0, 0, {left}, {right}){value})", total, x.side)


def fold_in(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Groups of channels become one: maxout, the mean of groups, a gated half."""
    groups = dice.pick(divisors(x.channels))
    inner = x.channels // groups
    style = dice.pick((0, 1, 2, 3))
    view = f"{x}.view({x}.size(0), {inner}, {groups}, {x.side}, {x.side})"
    view = view.replace(".view", ".reshape")
    if style == 0:
        w.map(f"{view}.amax(2)", inner, x.side)
    elif style == 1:
        w.map(f"{view}.sum(dim=1)", groups, x.side)
    elif style == 2 and x.channels % 2 == 0:
        w.map(f"F.glu({x}, dim=1)", x.channels // 2, x.side)
    else:
        reduced = f"torch.cat([{x}.mean(1, keepdim=True), {x}.amax(1, keepdim=True)], dim=1)"
        attend = w.layer("nn.Conv2d(2, 1, 3, padding=1)", "conv")
        w.like(x, f"{x} * torch.sigmoid({attend}({reduced}))")


def _parts(channels: int, most: int) -> tuple[int, ...]:
    """What a split into parts of at most so many gives."""
    return tuple(min(most, channels - start) for start in range(0, channels, most))


KINDS = (
    *(module, module, activation, activation, pool, upsample, pixels, cut, cut, move, shuffle),
    *(shuffle, pad, fold_in),
)
