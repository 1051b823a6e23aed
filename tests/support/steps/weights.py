"""Weights that have several uses, that are computed, or that a layer makes."""

from tests.support.steps.writer import Dice, Map, Writer


def two_roles(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A weight that makes channels in one use and consumes them in another."""
    c, inner, style = x.channels, dice.pick((4, 6, 3, 8)), dice.pick(tuple(range(6)))
    if style == 0:
        conv = w.layer(f"nn.Conv2d({c}, {inner}, 1, bias=False)", "conv")
        w.like(x, f"F.conv_transpose2d({conv}({x}).relu(), {conv}.weight)")
    elif style == 1:
        weight = w.parameter(inner, c, 3, 3)
        hidden = f"F.conv2d({x}, {weight}, padding=1).tanh()"
        w.like(x, f"F.conv_transpose2d({hidden}, {weight}, padding=1)")
    elif style == 2:
        fc = w.layer(f"nn.Linear({c}, {inner})", "fc")
        hidden = f"{fc}({x}.permute(0, 2, 3, 1)).relu()"
        w.like(x, f"F.linear({hidden}, {fc}.weight.t()).permute(0, 3, 1, 2)")
    elif style == 3:
        m = w.parameter(c, c)
        w.like(x, f"({x}.permute(0, 2, 3, 1) @ ({m} + {m}.t())).permute(0, 3, 1, 2)")
    elif style == 4:  # LISTA: a code is corrected by what it gives back
        weight, step = w.parameter(inner, c, 1, 1), w.parameter(1)
        code = w.variable(f"F.conv2d({x}, {weight}).relu()")
        rest = f"{x} - F.conv_transpose2d({code}, {weight})"
        w.map(f"({code} + {step} * F.conv2d({rest}, {weight})).relu()", inner, x.side)
    else:  # a codebook that asks and answers
        book = w.parameter(5, c)
        scores = f"({x}.permute(0, 2, 3, 1) @ {book}.t()).softmax(-1)"
        w.like(x, f"({scores} @ {book}).permute(0, 3, 1, 2)")


FUNCTIONS = (
    "{}.tanh()",
    "{}.exp() / 20",
    "F.softplus({}) / 20",
    "{}.sigmoid() - 0.5",
    "{} + 0.1",
    "{}.clamp(min=0.01)",
    "{}.clamp(-0.1, 0.1)",
    "F.normalize({}, dim=1)",
    "F.normalize({}, dim=0)",
    "{0} / {0}.square().sum((1, 2, 3), keepdim=True).sqrt()",
    "{0} - {0}.mean((1, 2, 3), keepdim=True)",
    "{}.renorm(2, 0, 1.0)",
    "{}.flatten(2).softmax(2).view_as({0})",
    "torch.where({0} > 0, {0}, 0.1 * {0})",
    "{}.sign() * 0.1",
    "{}.flip(2)",
)


def computed(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """A convolution whose weight is a function of parameters."""
    out, kernel, style = dice.width(x), dice.pick((1, 3)), dice.pick((0, 0, 1, 2, 3))
    if style == 0:
        weight = w.parameter(out, x.channels, kernel, kernel)
        code = dice.pick(FUNCTIONS).format(weight)
    elif style == 1:  # one filter for all inputs
        weight = w.parameter(out, 1, kernel, kernel)
        code = dice.pick((f".expand(-1, {x.channels}, -1, -1)", f".repeat(1, {x.channels}, 1, 1)"))
        code = f"{weight}{code} / {x.channels}"
    elif style == 2:  # low rank
        low = w.parameter(out, 2, 1, 1, 1), w.parameter(2, x.channels, kernel, kernel)
        code = f"({low[0]} * {low[1]}).sum(1)"
    else:  # squeezed parameters
        scale = w.parameter(1, x.channels, 1, 1)
        weight = w.parameter(out, x.channels, 1, 1)
        w.map(
            f"F.linear({x}.permute(0, 2, 3, 1) * {scale}.squeeze(), {weight}.squeeze(3).squeeze(2))"
            ".permute(0, 3, 1, 2)",
            out,
            x.side,
        )
        return
    w.map(f"F.conv2d({x}, {code}, padding={kernel // 2})", out, x.side)


def parametrized(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Weight norm and spectral norm, by hooks or by parametrizations."""
    out = dice.width(x)
    layer = dice.pick(
        (
            f"nn.Conv2d({x.channels}, {out}, 3, padding=1)",
            f"nn.ConvTranspose2d({x.channels}, {out}, 3, padding=1)",
        )
    )
    wrapper = dice.pick(
        (
            "nn.utils.parametrizations.weight_norm({})",
            "nn.utils.parametrizations.weight_norm({}, dim=1)",
            "nn.utils.parametrizations.spectral_norm({})",
            "nn.utils.spectral_norm({})",
        )
    )
    w.map(f"{w.layer(wrapper.format(layer), 'conv')}({x})", out, x.side)


def made_kernel(w: Writer, x: Map, other: Map, dice: Dice) -> None:
    """A kernel that a layer makes: each channel is correlated with its own."""
    inner = dice.pick((4, 6, 3))
    search, kernel = w.conv(x, inner, 3), w.conv(other, inner, 1)
    z = w.fit(kernel, inner, 1)
    n = w.variable(f"{search}.size(0) * {search}.size(1)")
    code = f"F.conv2d({search}.reshape(1, {n}, {x.side}, {x.side}), {z}.reshape({n}, 1, 1, 1)"
    shape = dice.pick((f"{search}.size(0), -1", f"-1, {inner}"))
    w.map(f"{code}, groups={n}).view({shape}, {x.side}, {x.side})", inner, x.side)


def chosen(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """One channel beside all of them, or some by their numbers."""
    c = x.channels
    i, j = dice.pick(tuple(range(c))), dice.pick(tuple(range(c)))
    style = dice.pick(tuple(range(6)))
    if style == 4:
        w.map(f"{x}[:, [{i}, {j}, {i}]]", 3, x.side)
    elif style == 5:
        order = list(range(c))[::-1]
        w.like(x, f"{x}[:, {order}] + {x}")
    else:
        one = (f".select(1, {i})", f".select(-3, {i - c})", f"[:, {i}]", f"[:, {i - c}]")[style]
        w.like(x, f"{x} * {x}{one}.unsqueeze(1).sigmoid()")


def rows_norm(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Norms of other ranks, with the channels first or last, and an activation in place."""
    c, style = x.channels, dice.pick(tuple(range(6)))
    norm = w.layer(f"nn.LayerNorm({c})" if style < 3 else "nn.Identity()", "norm")
    act = dice.pick(("F.relu({}, inplace=True)", "F.silu({}, inplace=True)", "{}.mul_(0.5)"))
    flat = w.variable(f"{x}.flatten(2)")
    if style == 0:
        y = w.variable(f"{norm}({flat}.transpose(1, 2)).transpose(1, 2)")
    elif style == 1:
        y = w.variable(f"{norm}({x}.unsqueeze(2).movedim(1, -1)).movedim(-1, 1).flatten(2)")
    elif style == 2:
        y = w.variable(f"{norm}({flat}.transpose(1, 2)).transpose(1, 2).contiguous()")
    elif style == 3:
        groups = dice.pick((c, 1, c))
        y = w.variable(f"F.group_norm({flat}, {groups})")
    elif style == 4:
        y = w.variable(f"F.rms_norm({flat}.transpose(1, 2), ({c},)).transpose(1, 2)")
    else:
        y = w.variable(f"F.local_response_norm({flat}, {dice.pick((2, 3, 5))})")
    w.like(x, f"{act.format(y)}.unflatten(2, {x}.shape[2:])")


def rare(w: Writer, x: Map, _: Map, dice: Dice) -> None:
    """Rarer ops: a recurrent layer over columns, a grid, a transform in space, a table."""
    c, s, style = x.channels, x.side, dice.pick(tuple(range(6)))
    if style == 0 and s > 1:
        w.like(x, f"torch.fft.irfft2(torch.fft.rfft2({x}) * 0.5, s=({s}, {s}))")
    elif style == 1 and s > 1:
        conv = w.layer(f"nn.Conv2d({c}, 2, 1)", "conv")
        grid = f"{conv}({x}).tanh().permute(0, 2, 3, 1)"
        w.like(x, f"F.grid_sample({x}, {grid}, align_corners=False)")
    elif style == 2 and s % 2 == 0:
        both = w.variable(f"F.max_pool2d({x}, 2, return_indices=True)")
        w.like(x, f"F.max_unpool2d({both}[0].tanh(), {both}[1], 2)")
    elif style == 3:
        table = w.layer(f"nn.Embedding(3, {c})", "table")
        numbers = f"torch.zeros({x}.shape[0], dtype=torch.int64)"
        w.like(x, f"{x} * {table}({numbers})[:, :, None, None].sigmoid()")
    elif style == 4 and s < 5:
        hidden = dice.pick((4, 3))
        kind = dice.pick(("GRU", "LSTM", "RNN"))
        cell = w.layer(f"nn.{kind}({c}, {hidden}, batch_first=True)", "rnn")
        seen = f"{cell}({x}.flatten(2).transpose(1, 2))[0].transpose(1, 2)"
        w.map(f"{seen}.reshape({x}.size(0), {hidden}, {s}, {s})", hidden, s)
    else:
        w.like(x, f"torch.unsafe_chunk(torch.cat([{x}, {x}.tanh()], 1), 2, 1)[1] + {x}")


KINDS = (two_roles, computed, computed, parametrized, made_kernel, chosen, rows_norm, rare)
