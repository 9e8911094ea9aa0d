"""Numbers smaller than a float normally holds, over which a CPU takes many times as long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Have this thread, and those that it starts meanwhile, write zeros in place of denormal numbers.

    Moments of weights that get no gradient, pruned ones and words that do not occur, fade until they are such numbers,
    and stay: rounding gives 0.9 times the smallest of them back as itself. CPUs without the switch keep them.
    """
    was_flushing = is_flushing()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushing)


def is_flushing() -> bool:
    """Whether this thread writes zeros in place of denormal numbers."""
    smallest = torch.full((), torch.finfo(torch.float32).tiny, dtype=torch.float32, device="cpu")
    return bool(smallest / 2 == 0)
