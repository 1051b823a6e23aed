"""The command line in a process of its own, and a small model for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

Call = Callable[..., subprocess.CompletedProcess[str]]
"""The command line, called as `run` is."""

MODEL = """\
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


build_model = Net
example_inputs = torch.zeros(2, 1, 8, 8)
"""
PLAIN_MODEL = """
import torch
from torch import nn


def build_model():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )
"""


def run(*arguments: str, folder: Path, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command line in `folder`; its exit code has to be the expected one."""
    code = "from fxprune.cli.commands import main; main()"
    done = python("-c", code, *arguments, folder=folder, exit_code=exit_code)
    assert "Traceback" not in done.stderr
    return done


def python(
    *arguments: str, folder: Path, exit_code: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python in `folder`; its exit code has to be the expected one."""
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    variables.pop("PYTHONWARNINGS", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == exit_code, done.stdout + done.stderr
    return done
