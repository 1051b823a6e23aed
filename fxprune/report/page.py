"""Write records as one HTML file that holds all it needs.

The charts are drawn by uPlot (MIT; assets/uplot.LICENSE), 50 KB of JavaScript in the page. The
figures stand in the page as canonical JSON: sorted keys, no spaces.
"""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fxprune.errors import RunError
from fxprune.files import CHECK, write_bytes

_ASSETS = ("uplot.css", "report.css", "uplot.js", "report.js")


def render(records: Sequence[dict[str, Any]]) -> str:
    """Render summaries, one or several to compare, as a page.

    Args:
        records: what `fxprune.report.summary.summarize` returned, one for each run; where titles
            are the same they are numbered.

    Returns:
        HTML that asks for no other file.
    """
    titles = [str(record["title"]) for record in records]
    for at, title in enumerate(titles):
        if titles.count(title) > 1:
            titles[at] = f"{title} ({at + 1})"
    records = [{**record, "title": title} for record, title in zip(records, titles, strict=True)]
    folder = files("fxprune.report") / "assets"
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in _ASSETS}
    page = (folder / "report.html").read_text(encoding="utf-8")
    text = json.dumps(list(records), sort_keys=True, separators=(",", ":"), allow_nan=False)
    parts["title"] = html.escape(f"fxprune report · {' · '.join(titles)}")
    # "</script>" inside a string would end the element that holds the JSON
    parts["data"] = text.replace("<", "\\u003c")
    return re.sub(r"/\*([\w.]+)\*/", lambda found: parts[found[1]], page)  # a title may look so too


def refuse_to_replace(path: Path) -> None:
    """Refuse to replace a file that is no report, such as the code of a network.

    Raises:
        RunError: it is none, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            is_report = b"<title>fxprune report" in file.read(2000)
    except OSError as error:
        raise RunError(f"cannot read {path}", why=str(error), do=CHECK) from error
    if not is_report:
        raise RunError(
            f"{path} is there already, and is no report",
            do="give another place with -o, or move it away",
        )


def write(path: Path, records: Sequence[dict[str, Any]]) -> int:
    """Write a report to `path`, atomically, and return its size in bytes.

    Raises:
        RunError: the file cannot be written.
    """
    content = render(records).encode()
    write_bytes(path, content)
    return len(content)
