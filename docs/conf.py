"""Settings of the documentation: Sphinx with MyST (Markdown) and the theme furo.

The command line's page is written from the commands themselves each time the site is built.
"""

import re
from pathlib import Path

import typer
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

import fxprune
from fxprune.cli.commands import app as commands

HERE = Path(__file__).parent

project = "fxprune"
author = "The fxprune authors"
copyright = author  # noqa: A001 - Sphinx's name for it
version = release = fxprune.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3  # so that `page.md#heading` can be linked to, and is checked
exclude_patterns = ["_build"]
templates_path: list[str] = []

html_theme = "furo"
html_title = f"fxprune {release}"
copybutton_prompt_text = "$ "

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

nitpicky = True
# Names of other projects cannot be resolved without their inventories, which a build on a machine
# without the internet does not have. fxprune's own public names must resolve.
nitpick_ignore_regex = [
    ("py:.*", r"(?!fxprune\.).*"),
    # types of the engine, which signatures name and which are no public part of fxprune
    ("py:class", r"fxprune\.(?:bank|gated|analysis)\..*"),
]


def write_command_line_page(_: Sphinx) -> None:
    """Writes reference/cli.md from the commands, their arguments and their help."""
    command = typer.main.get_command(commands)
    context = typer.Context(command, info_name="fxprune")
    text = get_docs_for_click(obj=command, ctx=context, name="fxprune", title="Command line")
    text = re.sub(r"^  (?=\[bold\])", "- ", text, flags=re.MULTILINE)  # the examples, as a list
    text = re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", text, flags=re.DOTALL)
    path = HERE / "reference" / "cli.md"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Sphinx) -> None:
    """Writes the generated page before Sphinx looks for its sources."""
    app.connect("builder-inited", write_command_line_page)
