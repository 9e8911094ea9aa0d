"""Which runs of rows to put together so that they share columns."""

import torch
from torch import Tensor


def group_rows(kept: Tensor, size: int) -> Tensor:
    """An order of runs in which each `size` that follow each other use few columns together.

    Greedy: the longest run that is left opens a group; the run that adds the fewest columns joins it, of several the
    one that shares the most. Source of the idea: Jiang, Hong and Agrawal 2020, *A novel data transformation and
    execution strategy for accelerating sparse matrix multiplication on GPUs* (PPoPP).

    Args:
        kept: bool `[runs, columns]`, which columns a run uses; runs a multiple of size.
        size: runs in a group.

    Returns:
        int64 `[runs]`, a permutation.
    """
    uses = kept.float()
    lengths = uses.sum(1)
    left = torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    order = torch.empty(len(kept), dtype=torch.int64, device=kept.device)
    for start in range(0, len(kept), size):
        union = torch.zeros_like(uses[0])
        for place in range(start, start + size):
            shared = uses @ union
            added = lengths - shared if place > start else -lengths
            # lengths are below 2 ** 20, so one fp64 number orders by columns added, then by columns shared
            cost = added.double() * 2**20 - shared
            best = torch.where(left, cost, torch.inf).argmin()
            left[best] = False
            union = torch.maximum(union, uses[best])
            order[place] = best
    return order
