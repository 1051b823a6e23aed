"""Files: tensors as safetensors, everything else as JSON; never a pickle.

A file is first written whole under a temporary name, flushed to the disk and then renamed, so
that whoever opens it sees the old one or the new one. Files of tensors carry a checksum.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from fxprune.errors import RunError

FORMAT = 1
"""Version of the layout of the files; another one is refused."""


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by a file that holds `content`, or leaves it as it was.

    Raises:
        RunError: the folder is missing or not writable, or the disk is full.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}", why=str(error)) from error


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; NaN and infinity are refused with a ValueError."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        RunError: there is no such file, or it holds no JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {path}", why=str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes named tensors, and `meta` as JSON in the same file.

    Args:
        path: where to, conventionally `*.safetensors`.
        tensors: any shapes, dtypes, strides and devices; strides and devices are not kept.
        meta: anything that JSON can hold.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, **meta}, allow_nan=False)
    # Clones: safetensors refuses tensors that share memory.
    content = to_bytes(
        {name: tensor.clone() for name, tensor in plain.items()},
        metadata={"fxprune": text, "checksum": _checksum(plain, text)},
    )
    write_bytes(path, content)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Returns:
        The tensors, on the CPU and contiguous, and the meta.

    Raises:
        RunError: the file is missing, damaged, of another program or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = file.metadata() or {}
    except FileNotFoundError as error:
        raise RunError(f"there is no file {path}") from error
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read {path}", why=f"it is damaged: {error}") from error
    text = found.get("fxprune")
    if text is None:
        raise RunError(f"cannot read {path}", why="it was not written by fxprune")
    if found.get("checksum") != _checksum(tensors, text):
        raise RunError(f"cannot read {path}", why="it is damaged: the checksum does not match")
    meta: dict[str, Any] = json.loads(text)
    if meta.pop("format") != FORMAT:
        raise RunError(f"cannot read {path}", why="it was written by another version of fxprune")
    return tensors, meta


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable (POSIX; elsewhere a folder cannot be opened)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
