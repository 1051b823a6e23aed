"""The errors that a user can correct, and the format in which they are shown.

Every error says what went wrong, where (the user's own line if there is one), why, and what
to do about it::

    cannot couple channels through aten.roll (node roll_3)
      at   mynet.py:41   x = torch.roll(x, 1, dims=1)
      why  the roll moves channels by a distance that depends on data
      do   replace the roll, or add a rule (docs: extend, "Add an op rule")
"""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def message(what: str, *, at: str = "", why: str = "", do: str = "") -> str:
    """Format an error or a warning; an empty part has no line."""
    lines = [without_controls(what)]
    for label, text in (("at", at), ("why", why), ("do", do)):
        if text:
            head, *rest = without_controls(text).strip().splitlines()
            lines.append(f"  {label:<5}{head}")
            lines += [f"       {line}" for line in rest]
    return "\n".join(lines)


def without_controls(text: str) -> str:
    r"""Write out the characters that would command a terminal, such as those of a stranger's file.

    >>> without_controls("a\x1b[2J")
    'a\\x1b[2J'
    """
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: ascii(found.group())[1:-1], text)


def shell_word(path: Path | str) -> str:
    """Write a path for a shell, so that no command takes it for an option.

    >>> shell_word("-a b")
    "'./-a b'"
    """
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def described(value: object) -> str:
    """Name the kind of a value, with its article.

    >>> described(3), described("text"), described(dict)
    ('an int', 'a str', 'the class dict')
    """
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"


def brief(value: object) -> str:
    """Write a value on one line, or name its kind where it is long.

    >>> brief([1, 2]), brief(list(range(100)))
    ('[1, 2]', 'a list')
    """
    text = repr(value)
    return described(value) if len(text) > 60 or "\n" in text else text


class Unsaid(SystemExit):
    """Ends a process without a word: another process says why."""


class FxpruneError(Exception):
    """Base of all errors that a user can correct; the command line exits with `exit_code`.

    Attributes:
        what: what went wrong, with the value that did.
        at: the line of the user's code, if one is known.
        why: the reason.
        do: what to change.
    """

    exit_code = 2

    def __init__(self, what: str, *, at: str = "", why: str = "", do: str = "") -> None:
        super().__init__(what)  # the rest travels with the attributes when it is pickled
        self.what, self.at, self.why, self.do = what, at, why, do

    def __str__(self) -> str:
        return message(self.what, at=self.at, why=self.why, do=self.do)


class FxpruneWarning(UserWarning):
    """Something that a user should know, and need not correct."""


class SpecError(FxpruneError):
    """A SPEC that names no model: no such file, no factory, or a factory that raises."""


class TraceError(FxpruneError):
    """A model that torch.fx cannot trace, or whose example inputs do not fit.

    Attributes:
        node: name of the graph node that was running, "" if none was.
        near: labels of the tensors that its call received, or of the last ones before it.
    """

    near: Sequence[Any] = ()

    def __init__(
        self, what: str, *, at: str = "", why: str = "", do: str = "", node: str = ""
    ) -> None:
        super().__init__(what, at=at, why=why, do=do)
        self.node = node


class ModelError(FxpruneError):
    """A model that PyTorch itself cannot train as it is written."""


class OptionError(FxpruneError):
    """An unknown policy, pass or option, or a value outside its range."""


class UnknownNameError(OptionError):
    """A name that no plug-in has."""


def require_kind(value: object, kinds: Any, name: str, do: str) -> None:
    """Refuse an argument of another kind, which a caller may give who has no types.

    Args:
        value: the argument.
        kinds: what it may be, as for isinstance.
        name: the argument's, with its article.
        do: what to give instead.

    Raises:
        OptionError: it is of none of the kinds.
    """
    if not isinstance(value, kinds):
        shown, kind = brief(value), described(value)
        why = "" if kind == shown else f"it is {kind}"
        raise OptionError(f"{name} cannot be {shown}", why=why, do=do)


class BudgetError(OptionError):
    """A budget that cannot be parsed, is out of range, or that no widths can meet."""


class DataError(FxpruneError):
    """A data set that is missing or does not fit the model."""


class RunError(FxpruneError):
    """A run directory or saved file that is missing, damaged, or belongs to another model."""


class GateError(FxpruneError):
    """A selection or width that the gated network cannot take."""


class PassError(FxpruneError):
    """A pass whose result does not fulfil what the pass ensures."""

    exit_code = 1


class ExportError(FxpruneError):
    """A network that cannot be written as ONNX or that ONNX Runtime cannot run."""

    exit_code = 1


class ParityError(FxpruneError):
    """The exported file does not compute what the network computes; nothing was written."""

    exit_code = 1
