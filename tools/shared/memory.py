"""The memory of a process or a GPU, now and at its peak."""

import contextlib
import ctypes
import gc
import resource
from pathlib import Path

import torch

from fxprune import files


class Peak:
    """The most memory in use since it was made, beyond what was in use then on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.start_bytes = device, 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        trim()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self.start_bytes = resident_bytes()

    def bytes(self) -> int:
        """That of the GPU as PyTorch counts it, or that of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resident_bytes(peak=True) - self.start_bytes


class KeptPeak:
    """The highest peak of all processes that worked at the same thing, kept in a file."""

    def __init__(self, device: torch.device, path: Path) -> None:
        self.path, self.here = path, Peak(device)
        self.before = int(path.read_text()) if path.exists() else 0

    def bytes(self) -> int:
        """That of this process and those before it; as `Peak.bytes`."""
        return max(self.before, self.here.bytes())

    def keep(self) -> None:
        """Writes it down for the processes that go on from here."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self.path, str(self.bytes()).encode())


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets the process keep what it frees, for steps that are to be timed.

    Else the C library gives memory back and asks for it again in each step, more or less of it
    depending on what was allocated before: up to a sixth of the time of a step, by chance.
    """
    _malloc_option(M_MMAP_MAX, 0)
    _malloc_option(M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Lets the process give back what it frees, so that only what is in use counts."""
    _malloc_option(M_MMAP_MAX, 65536)
    _malloc_option(M_MMAP_THRESHOLD, 128 * 1024)
    _malloc_option(M_TRIM_THRESHOLD, 128 * 1024)
    trim()


def _malloc_option(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(option, value)


def trim() -> None:
    """Gives memory that is free back to the system, so that it does not count as used."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(peak: bool = False) -> int:
    """The process's resident memory, now or at its peak; without /proc only the peak is known."""
    key, status = "VmHWM:" if peak else "VmRSS:", Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    lines = status.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
