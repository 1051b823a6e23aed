"""`fxprune`, `python -m fxprune`, and `torchrun -m fxprune train`."""

from fxprune.cli.signals import ending


def main() -> None:
    """Runs the command line; a signal ends it with one line from the first import on."""
    with ending():
        from fxprune.cli.commands import main

        main()


if __name__ == "__main__":
    main()
