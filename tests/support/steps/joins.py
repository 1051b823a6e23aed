"""Steps that join two maps."""

from tests.support.steps.writer import WIDEST, Dice, Map, Writer, divisors


def add(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """A sum, or what is as much as one."""
    y = w.partner(x, other)
    code = dice.pick(
        (
            "{0} + {1}",
            "torch.add({0}, {1})",
            "{0}.add_({1})",
            "{0} += {1}",
            "{0} - {1}",
            "torch.maximum({0}, {1})",
            "{0}.add({1}, alpha=0.5)",
            "torch.stack([{0}, {1}]).sum(0)",
            "torch.stack([{0}, {1}], dim=1).mean(1)",
            "torch.lerp({0}, {1}, 0.3)",
        )
    )
    if ("add_" in code or "+=" in code) and not x.ours:
        code = "{0} + {1}"
    if "+=" in code:
        w.line(code.format(x, y))
    else:
        w.like(x, code.format(x, y))


def write(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """A part of the channels is written in place."""
    c = x.channels
    at = 1 + dice.pick(tuple(range(max(c - 1, 1))))
    style = dice.pick(tuple(range(8)))
    if not x.ours or c == 1:
        return
    if style == 0:
        w.line(f"{x}[:, :{at}] = 0.5")
    elif style == 1:
        w.line(f"{x}[:, {c - at}:] *= 0.5")
    elif style == 2:
        w.line(f"{x}[:, :{at}].relu_()")
    elif style == 3:
        w.line(f"{x}[:, {at - 1}] = 0.5")
    elif style == 4 and c % 2 == 0:
        w.line(f"{x}[:, : {c // 2}] += {x}[:, {c // 2} :]")
    elif style == 5:
        y = w.fit(other, at, x.side)
        w.line(f"{x}[:, -{at}:] = {y}")
    elif style == 6:
        w.line(f"{x}[{x} < 0] = 0.1")
    elif style == 7:  # a shift in time
        y = w.variable(f"torch.zeros_like({x})")
        w.line(f"{y}[:, :{at}, 1:] = {x}[:, :{at}, :-1]")
        w.line(f"{y}[:, {at}:] = {x}[:, {at}:]")
        w.like(x, y)


def residual(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A block and its shortcut."""
    inner = dice.pick((4, 6, 8, 2, 3))
    out, stride = dice.pick((x.channels, x.channels, 6, 8)), dice.pick(("", "", ", stride=2"))
    y = w.conv(x, inner, 3, f"{stride}, bias=False")
    y = w.like(y, f"F.relu({w.layer(f'nn.BatchNorm2d({inner})', 'norm')}({y}))")
    if dice.flag():
        y = w.conv(y, inner, 3, f", groups={inner}")
    y = w.conv(y, out, 1)
    short = x
    if (x.channels, x.side) != (y.channels, y.side):
        short = w.conv(x, out, 1, stride)
    w.like(y, f"{y} + {short}")


def gate(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """A product; unbounded ones are bent, so that numbers stay small."""
    if dice.flag():
        y = w.fit(other, x.channels, 1)
        w.like(x, f"{x} * {y}.sigmoid()")
        return
    y = w.partner(x, other)
    code = dice.pick(
        ("{0} * torch.sigmoid({1})", "torch.tanh({0} * {1})", "torch.mul({0}, {1}.tanh())")
    )
    w.like(x, code.format(x, y))


def concat(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """Channels one after the other."""
    y = other if other.side == x.side else w.fit(other, other.channels, x.side)
    parts = dice.pick(([x, y], [y, x], [x, y, x], [x, x]))
    total = sum(part.channels for part in parts)
    if total <= WIDEST:
        names = ", ".join(map(str, parts))
        code = dice.pick((f"torch.cat([{names}], 1)", f"torch.cat(({names}), dim=-3)"))
        w.map(code, total, x.side)


def select(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """Selective kernels: two maps, weighted by a softmax over the two."""
    y = w.partner(x, other)
    c, inner = x.channels, dice.pick((2, 3))
    squeeze, attend = (
        w.layer(f"nn.Linear({c}, {inner})", "fc"),
        w.layer(f"nn.Linear({inner}, {2 * c})", "fc"),
    )
    both = w.variable(f"torch.stack([{x}, {y}], dim=1)")
    logits = f"{attend}({squeeze}({both}.sum(1).mean((2, 3))).relu())"
    shape = dice.pick((f"(-1, 2, {c})", f"({x}.size(0), 2, -1)"))
    weights = f"torch.softmax({logits}.view{shape}, dim=1)[..., None, None]"
    w.like(x, f"({both} * {weights}).sum(dim=1)")


def attend(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """Attention over places: queries and keys from one map, values from another."""
    inner, s = dice.pick((2, 3, 4)), x.side
    y = other if other.side == s else w.fit(other, other.channels, s)
    query, key = w.conv(x, inner), w.conv(x, inner)
    scores = w.variable(f"{query}.flatten(2).transpose(1, 2) @ {key}.flatten(2)")
    mixed = f"{y}.flatten(2) @ torch.softmax({scores}, dim=-1).transpose(1, 2)"
    if dice.flag():
        mixed = f"torch.bmm({y}.view({y}.size(0), {y.channels}, -1), {scores}.softmax(-1))"
        mixed = mixed.replace(".view", ".reshape")
    shape = dice.pick((f"-1, {y.channels}, {s}, {s}", f"{y}.size(0), -1, {s}, {s}"))
    w.map(f"({mixed}).view({shape})", y.channels, s)


def heads(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """PyTorch's attention over places, as it is called, with a shortcut or a norm around it."""
    c, s, own = x.channels, x.side, dice.pick((1, *divisors(x.channels)))
    y = w.fit(other, other.channels, s) if dice.flag() else x
    tokens, others = (w.variable(f"{m}.flatten(2).transpose(1, 2)") for m in (x, y))
    style = dice.pick(("self", "self", "weights", "others", "layer"))
    if style == "layer":
        options = dice.pick(("", ", norm_first=True"))
        layer = f"nn.TransformerEncoderLayer({c}, {own}, 6, 0.0, batch_first=True{options})"
        w.map(f"{w.layer(layer, 'layer')}({tokens}).transpose(1, 2).unflatten(2, ({s}, {s}))", c, s)
        return
    widths = "" if style != "others" else f", kdim={y.channels}, vdim={y.channels}"
    name = w.layer(f"nn.MultiheadAttention({c}, {own}, batch_first=True{widths})", "attention")
    keys = others if style == "others" else tokens
    weights = "" if style == "weights" else ", need_weights=False"
    seen = f"{name}({tokens}, {keys}, {keys}{weights})[0].transpose(1, 2)"
    w.like(x, dice.pick(("{1} + {0}", "{0}")).format(f"{seen}.unflatten(2, ({s}, {s}))", x))


KINDS = (
    add,
    add,
    add,
    write,
    residual,
    residual,
    gate,
    gate,
    concat,
    concat,
    concat,
    select,
    attend,
    heads,
)
