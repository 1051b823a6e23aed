"""The python blocks and the commands of a page of the documentation, and how they are run."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ("_build", "reference/cli.md")
FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCES = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?((?:fxprune|torchrun) (?:.*\\\n)*.*)", re.MULTILINE)
FILE = re.compile(r"# (\w+\.py)\n")
PLUGIN = re.compile(r"# (?:fxprune/)?(rules|policies|passes)/(\w+)\.py\n")

RUNNER = """
import importlib, json, sys
for folder in json.loads(sys.argv[1]):
    importlib.import_module(f"fxprune.{folder}").__path__.append(folder)
page, blocks = json.load(sys.stdin)
for line, block in blocks:
    exec(compile("\\n" * line + block, page, "exec"), {"__name__": "docs"})
"""


@dataclass(frozen=True)
class Block:
    """A python block of a page: the line it begins after, and its text."""

    line: int
    text: str

    @property
    def plugin(self) -> Path | None:
        """The file that the block stands for, as `folder/name.py`; None where it is a program."""
        match = PLUGIN.match(self.text)
        return Path(match.group(1)) / f"{match.group(2)}.py" if match else None


def pages() -> list[Path]:
    """README.md and every Markdown file of docs/ that is not generated."""
    docs = ROOT / "docs"
    found = sorted(
        path for path in docs.rglob("*.md") if not str(path.relative_to(docs)).startswith(GENERATED)
    )
    return [ROOT / "README.md", *found]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(text.count("\n", 0, match.start(1)), match.group(1)) for match in FENCE.finditer(text)
    ]


def commands(page: Path) -> list[list[str]]:
    """The commands in the console blocks of a page, as words for fxprune."""
    found = []
    for language, block in FENCES.findall(page.read_text()):
        for command in COMMAND.findall(block) if language in ("", "console") else ():
            words = shlex.split(command.replace("\\\n", " "), comments=True)
            found.append(words[words.index("fxprune") + 1 :])
    return found


def files(page: Path) -> dict[str, str]:
    """The python blocks of a page that are files which its commands name."""
    texts = [block.text for block in blocks(page)]
    return {match.group(1): text for text in texts if (match := FILE.match(text))}


def run(page: Path, folder: Path) -> str:
    """Runs the blocks of a page in one new process in `folder`; returns what they printed.

    A block that begins with `# path/of/a/plug-in.py` is put into a folder that the package looks
    into beside its own; the other blocks are executed as they stand, each on its own.

    Raises:
        AssertionError: a block failed; the message is its traceback, with the page's lines.
    """
    programs, folders = [], []
    for block in blocks(page):
        if block.plugin is None:
            programs.append((block.line, block.text))
            continue
        path = folder / block.plugin
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.text)
        folders.append(path.parent.name)
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(sorted(set(folders)))],
        input=json.dumps([str(page.relative_to(ROOT)), programs]),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
