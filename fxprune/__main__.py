"""`python -m fxprune`, and `torchrun -m fxprune train`."""

from fxprune.cli import main

if __name__ == "__main__":
    main()
