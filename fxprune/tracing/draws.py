"""The random numbers that are drawn beside a network, and how to draw the same ones again."""

import random

import numpy as np
import torch


class Draws:
    """The state of what random numbers are drawn from, by torch, Python and NumPy."""

    def __init__(self) -> None:
        self._numpy = np.random.get_state()
        self._python = random.getstate()
        self._torch = torch.random.get_rng_state()
        on_gpu: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._cuda = torch.cuda.get_rng_state_all() if on_gpu else []

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Draws)
        return (
            self._python == other._python
            and torch.equal(self._torch, other._torch)
            and all(map(torch.equal, self._cuda, other._cuda))
            and all(map(np.array_equal, self._numpy, other._numpy))
        )

    def put_back(self) -> None:
        """Make the random numbers that follow those that would have followed then."""
        random.setstate(self._python)
        torch.random.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        np.random.set_state(self._numpy)
