"""`python -m fxprune`, and `torchrun -m fxprune train`."""

from fxprune.cli.commands import main

if __name__ == "__main__":
    main()
