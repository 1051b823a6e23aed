"""Who asks for the type of a value: the user's code, or PyTorch for itself."""

import dis
import linecache
from itertools import islice
from pathlib import Path
from types import FrameType

import torch

_PACKAGE = Path(__file__).parent.parent
INTERNAL = tuple(
    f"{folder}/"
    for folder in (Path(torch.__file__).parent, _PACKAGE, (_PACKAGE / "passes").resolve())
)
"""The folders of code that is not the user's: PyTorch and this package."""

_ASKING = frozenset({torch.is_tensor.__code__, torch._jit_internal._isinstance.__code__})
"""PyTorch's functions that ask for a type in the user's name."""


def users_code_asks(frame: FrameType) -> bool:
    """Tell whether the user's code asks for a type at this place, and not code in C++ for itself.

    Functions of C++, such as those of `torch.jit.script`, ask too, and take what says that it is a
    tensor for the memory of one.
    """
    code = frame.f_code
    if code.co_filename.startswith(INTERNAL):
        return code in _ASKING
    if dis.opname[code.co_code[frame.f_lasti]] in ("MATCH_CLASS", "LOAD_ATTR"):
        return True  # the attribute is `__class__`
    line, _, column, _ = next(islice(code.co_positions(), frame.f_lasti // 2, None))
    text = linecache.getline(code.co_filename, line or 0)
    return text.encode()[column:].startswith(b"isinstance") or (
        not text and "isinstance" in code.co_names
    )
