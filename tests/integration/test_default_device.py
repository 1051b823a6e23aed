"""`torch.set_default_device` is for the user's tensors: the network's own stay where they are."""

import copy
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.export.pt2 import export_pt2
from tests.support.nets import BY_NAME
from tests.support.training import dense

CASES = {
    "resnet_projection": "utility{warmup=1,reallocate=2}",
    "shuffle_unit": "balance",
    "moved": "cucb",
}


@pytest.mark.parametrize(("name", "policy"), CASES.items())
def test_a_default_device_changes_nothing(name: str, policy: str, tmp_path: Path) -> None:
    """On the meta device nothing can be computed, and none of its tensors meet others."""
    net = BY_NAME[name]
    ends = []
    for device in ("cpu", "meta"):
        model, inputs = net.model().float().train(), tuple(x.float() for x in net.inputs())
        with torch.device(device):
            gated = fxprune.instrument(model, inputs, policy=policy)
            optimizer = torch.optim.AdamW(gated.parameters(), 0.01)
            fxprune.attach(gated, optimizer)
            for step in range(4):
                if step == 2:
                    gated.load_state_dict(copy.deepcopy(gated.state_dict()))
                    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
                outputs = gated(*inputs)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                sum(output.square().mean() for output in outputs).backward()
                optimizer.step()
                optimizer.zero_grad()
            average = copy.deepcopy(gated.eval())
            compact, reference = fxprune.shrink(average), fxprune.reference_of(gated, model)
            fxprune.save(gated, tmp_path / device)
            again = fxprune.load(tmp_path / device, model)
            fxprune.export_onnx(compact, inputs, tmp_path / "compact.onnx", reference=reference)
            export_pt2(compact, inputs, tmp_path / "compact.pt2", reference=reference)
        ends.append((dense(gated), dense(again)))
    for one, two in zip(*ends, strict=True):
        assert [key for key in one if not torch.equal(one[key], two[key])] == []
