"""The command env."""

import platform
from importlib import metadata
from typing import Any

from fxprune.cli.arguments import Json, print_result

PACKAGES = (
    *("fxprune", "torch", "torchvision", "timm", "numpy", "onnx", "onnxruntime", "onnxscript"),
    *("safetensors", "triton"),
)


def env(as_json: Json = False) -> None:
    """Print the versions, the machine and the devices: what a report of a fault needs.

    Nothing in it names the user, the host or a folder.
    """
    print_result(record(), _lines, as_json)


def record() -> dict[str, Any]:
    """Collect what `fxprune env` prints; a package that is not installed has no version."""
    import torch

    from fxprune.data.folder import usable_cores

    return {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "devices": [
            torch.cuda.get_device_properties(index).name
            for index in range(torch.cuda.device_count())
        ],
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _lines(found: dict[str, Any]) -> str:
    rows = {name: version or "not installed" for name, version in found["packages"].items()}
    rows |= {
        "Python": found["python"],
        "system": found["system"],
        "cores": f"{found['cores'] or 'unknown'}, torch uses {found['threads']} threads",
        "CUDA": found["cuda"] or "torch is built without",
        "devices": ", ".join(found["devices"]) or "cpu only",
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items())
