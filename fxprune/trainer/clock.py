"""The time of each training step, on a CPU or a GPU."""

import time
from collections.abc import Sequence

import torch


class Clock:
    """Times steps without making a GPU wait for its host."""

    def __init__(self, device: torch.device, before: Sequence[float] = ()) -> None:
        self.on_gpu = device.type == "cuda"
        self.before = before
        self.seconds: list[float] = []
        self.events: list[tuple[torch.Event, torch.Event]] = []

    def __enter__(self) -> None:
        if self.on_gpu:
            pair = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
            pair[0].record()
            self.events.append(pair)
        self.began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.seconds.append(time.perf_counter() - self.began)
        if self.on_gpu:
            self.events[-1][1].record()

    def all(self) -> list[float]:
        """Return the times of all steps so far, seconds."""
        if self.on_gpu:
            torch.cuda.synchronize()
            return [*self.before, *(a.elapsed_time(b) / 1000 for a, b in self.events)]
        return [*self.before, *self.seconds]
