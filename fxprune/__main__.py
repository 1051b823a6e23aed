"""`fxprune`, `python -m fxprune`, and `torchrun -m fxprune train`."""

import sys

from fxprune.cli.signals import ending


def main() -> None:
    """Run the command line; a signal ends it with one line from the first import on."""
    with ending():
        from fxprune.cli.commands import main

        main()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder: a stranger's timm.py there must not be imported
    main()
