"""SplitMix64: whole numbers to others that look random, the same on every device (Steele, Lea, Flood 2014)."""

from __future__ import annotations

from torch import Tensor

# its odd constants, cut to 63 bits
MIX = (0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB)


def mix(place: Tensor) -> Tensor:
    """A pseudorandom int64 for each int64 place, the low bits the best; wraps around."""
    mixed = (place + 1) * MIX[0]
    mixed = (mixed ^ (mixed >> 30)) * MIX[1]
    mixed = (mixed ^ (mixed >> 27)) * MIX[2]
    return mixed ^ (mixed >> 31)
