"""`fxprune`, `python -m fxprune`, and `torchrun -m fxprune train`."""

import sys

from fxprune.cli.signals import ending, ignore


def main() -> None:
    """Run the command line; a signal ends it with one line from the first import on."""
    try:
        with ending():
            from fxprune.cli.commands import main

            main()
    finally:
        ignore()  # what is left is Python's own end: it must not turn success into failure


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder: a stranger's timm.py there must not be imported
    main()
