"""Which runs of rows to put together so that they share columns."""

import torch
from torch import Tensor


def group_rows(kept: Tensor, size: int) -> Tensor:
    """An order of runs in which each `size` that follow each other use few columns together.

    Greedy: the longest run that is left opens a group, and those most similar to the group by Jaccard's index join it.
    Where that stores no less than the order they are in, they stay in it. Source of the idea: Jiang, Hong and Agrawal
    2020, *A novel data transformation and execution strategy for accelerating sparse matrix multiplication on GPUs*
    (PPoPP).

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
            alike = shared / (lengths + union.sum() - shared).clamp(min=1) if place > start else lengths
            best = alike.where(left, -1).argmax()
            left[best] = False
            union = torch.maximum(union, uses[best])
            order[place] = best
    as_it_is = torch.arange(len(kept), device=kept.device)
    return order if _stored(kept[order], size) < _stored(kept, size) else as_it_is


def _stored(kept: Tensor, size: int) -> int:
    """Columns that the groups use, added up."""
    return int(kept.view(len(kept) // size, size, kept.shape[1]).any(1).sum())
