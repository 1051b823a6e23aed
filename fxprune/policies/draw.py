"""Random numbers as a hash of seed, step and channel number.

So a checkpoint needs no generator's state, and every device draws the same numbers.
"""

from torch import Tensor

LOW = 0xFFFFFFFF


def draw(seed: Tensor, step: Tensor, channels: Tensor) -> Tensor:
    """Draw a multiple of 2^-24 in [0, 1) for each channel: int64 [], [], [N] -> float32 [N]."""
    bits = _mix(channels + _mix(step + _mix(seed)))
    return (bits >> 8).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Mix bits by C. Wellons' lowbias32, a bijection of 32-bit numbers, held in int64."""
    x = x & LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)
