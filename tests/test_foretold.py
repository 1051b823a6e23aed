"""What label propagation foretells of an op is what PyTorch's own meta kernel says."""

from typing import Any

import pytest
import torch

from fxprune.labels import foretold

aten = torch.ops.aten
X = torch.empty(2, 4, 3, 3, device="meta")
GATE, VECTOR = torch.empty(2, 4, 1, 1, device="meta"), torch.empty(4, device="meta")
HALF = torch.empty(2, 4, 3, 3, device="meta", dtype=torch.float16)
OUTER = torch.empty(1, 1, 3, 3, device="meta")


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.relu.default, (X,)),
        (aten.hardtanh.default, (X, 0, 6)),
        (aten.mul.Tensor, (GATE, X)),
        (aten.div.Tensor, (X, 2.0)),
        (aten.native_batch_norm.default, (X, *[VECTOR] * 4, True, 0.1, 1e-5)),
    ],
    ids=str,
)
def test_the_first_result_looks_like_pytorchs(op: Any, args: tuple[Any, ...]) -> None:
    told = foretold(op, args)
    assert told is not None
    out = op(*args)
    first = out[0] if told[0] else out
    assert told[1][0] == (first.shape, first.stride(), first.dtype)
    assert len(told[1]) == (len(out) if told[0] else 1)


@pytest.mark.parametrize(
    "args", [(X, HALF), (GATE, OUTER), (X.transpose(1, 2), 2.0), (X.long(), 2.0)], ids=str
)
def test_what_is_not_plain_is_left_to_pytorch(args: tuple[Any, ...]) -> None:
    assert foretold(aten.mul.Tensor, args) is None
