"""Random numbers by number: a hash of seed, step and channel.

So there is no generator to save, a run goes on from its state, and every device draws the same.
"""

from torch import Tensor

LOW = 0xFFFFFFFF


def draw(seed: Tensor, step: Tensor, channels: Tensor) -> Tensor:
    """Draw from [0, 1) by number: int64 [], [], [N] -> float32 [N], multiples of 2^-24."""
    bits = _mix(channels + _mix(step + _mix(seed)))
    return (bits >> 8).float() * 2.0**-24


def _mix(x: Tensor) -> Tensor:
    """Mix bits by C. Wellons' lowbias32, a bijection of 32-bit numbers, held in int64."""
    x = x & LOW
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & LOW
    x = ((x ^ (x >> 15)) * 0x846CA68B) & LOW
    return x ^ (x >> 16)
