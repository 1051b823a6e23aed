"""Formats: tensors as safetensors, everything else as JSON; never a pickle.

What a run keeps carries a checksum and fits a schema, which is a dataclass with types (checked by
pydantic in its strict mode).
"""

import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from fxprune.errors import OptionError, RunError
from fxprune.files import MOST_BYTES, damaged, read_bytes, write_bytes

FORMAT = 2
"""Version of the layout of the files; another one is refused."""

TENSOR_BYTES = 2**36
"""The largest file of tensors that is read where the reader knows no better."""

OTHER = "use the version that wrote it, or make the file again with this one"
"""What to do about a file in another layout."""

META = "__metadata__"
"""Where the header of a file of tensors holds texts."""

T = TypeVar("T")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; NaN and infinity are refused with a ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        content = f"{text}\n".encode()
    except UnicodeEncodeError as error:
        raise RunError(
            f"cannot write {path}",
            why=f"it would name a file whose name is no text: {error.reason}",
            do="rename that file",
        ) from error
    write_bytes(path, content)


def read_json(path: Path) -> Any:
    """Read a JSON file, of at most 200 levels and without NaN and infinity.

    Raises:
        RunError: there is no such file, or it holds no JSON.
    """
    return parsed(read_bytes(path), path)


def write_record(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON with the format's version and a checksum.

    Raises:
        RunError: the file cannot be written.
    """
    whole = {"format": FORMAT, **value}
    write_json(path, {**whole, "checksum": _checksum({}, _canonical(whole))})


def read_record(path: Path, kind: type[T]) -> T:
    """Read what `write_record` wrote.

    Args:
        path: the file.
        kind: a dataclass whose fields are those of the record, `format` and `checksum` aside.

    Raises:
        RunError: the file is missing, damaged, of another version or does not fit `kind`.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise RunError(
            f"cannot read {path}", why="it was not written by this version of fxprune", do=OTHER
        )
    checksum = value.pop("checksum", None)
    if checksum != _checksum({}, _canonical(value)):
        raise RunError(
            f"cannot read {path}",
            why="it is damaged: the checksum does not match",
            do="undo what was edited by hand, or make the run again",
        )
    del value["format"]
    return fitting(kind, value, path)


def fitting(kind: type[T], value: Any, path: Path, what: str = "content") -> T:
    """Build `kind`, a type with a schema, from JSON; `path` and `what` are for the message.

    Raises:
        RunError: a field is missing, unknown, of another type or out of its range.
    """
    try:
        whole: Any = kind
        found: T = _adapter(whole).validate_json(json.dumps(value))
    except OptionError as error:  # of a dataclass that checks itself
        raise damaged(path, str(error), f"its {what}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in first["loc"][:3])
        raise damaged(path, f"{place}{first['msg']}", f"its {what}") from error
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parsed(content: bytes | str, path: Path) -> Any:
    """Parse JSON; `path` is for the message.

    Raises:
        RunError: the content is no JSON, is nested deeper than 200 levels, or holds NaN or
            infinity.
    """
    try:
        return from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise damaged(path, str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors, and `meta` as JSON in the same file.

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


def read_tensors(path: Path, most: int = TENSOR_BYTES) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: the file.
        most: bytes that it may have.

    Returns:
        The tensors, on the CPU and contiguous, and the meta.

    Raises:
        RunError: the file is missing, damaged, of another program or of another version.
    """
    content = read_bytes(path, most, _announced)
    try:
        tensors = from_bytes(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise damaged(path, str(error)) from error
    found = parsed(content[8 : 8 + int.from_bytes(content[:8], "little")], path)
    found = found.get(META) or {}
    text = found.get("fxprune")
    if text is None:
        raise RunError(
            f"cannot read {path}",
            why="it was not written by fxprune",
            do="give a file that fxprune.save wrote, or the folder of a run",
        )
    if found.get("checksum") != _checksum(tensors, text):
        raise damaged(path, "the checksum does not match")
    meta = parsed(text, path)
    if not isinstance(meta, dict) or meta.pop("format", None) != FORMAT:
        raise RunError(
            f"cannot read {path}", why="it was written by another version of fxprune", do=OTHER
        )
    return tensors, meta


def _announced(file: BinaryIO) -> int:
    """Read the size of a file of tensors from its header, in bytes."""
    count = int.from_bytes(file.read(8), "little")
    try:
        header = from_json(file.read(min(count, MOST_BYTES)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != META]
        return int(8 + count + max(ends, default=0))
    except (ValueError, AttributeError, TypeError, KeyError, IndexError) as error:
        raise ValueError("its header lists no tensors") from error


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
