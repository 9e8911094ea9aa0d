"""Keep the N best of every M consecutive values."""

import torch
from torch import Tensor

from trisparse.sparse_ops.sort_keys import sort_keys

_MAX_PAIRWISE_M = 8  # M * (M - 1) / 2 comparisons of whole columns; beyond, one sort is faster


def nm_mask_reference(scores: Tensor, n: int, m: int) -> Tensor:
    """Plain torch; see `nm_mask`."""
    keys = sort_keys(scores).view(-1, m)
    if m > _MAX_PAIRWISE_M:
        best = torch.sort(keys, dim=1, descending=True, stable=True).indices[:, :n]
        return torch.zeros_like(keys, dtype=torch.bool).scatter_(1, best, True).view(scores.shape)
    columns = keys.unbind(1)  # strided: comparing them in place is cheaper than transposing
    # how many rank above each: at first all that come later, corrected pair by pair
    before = [torch.full_like(c, m - 1 - i, dtype=torch.uint8) for i, c in enumerate(columns)]
    for i in range(m):
        for j in range(i + 1, m):
            first = (columns[i] >= columns[j]).view(torch.uint8)  # a tie goes to the lower index
            before[j] += first
            before[i] -= first
    mask = torch.empty(keys.shape, dtype=torch.bool, device=keys.device)
    for i in range(m):
        torch.lt(before[i], n, out=mask[:, i])
    return mask.view(scores.shape)


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask of the n highest of every m consecutive scores; a tie keeps the lower index.

    NaN counts as higher than inf, so it is kept.

    Args:
        scores: `[rows, cols]` of any float dtype, cols a multiple of m.
        n: how many to keep of each group, 1 <= n <= m.
        m: consecutive columns in a group, at most 32.

    Returns:
        bool `[rows, cols]`, True = kept, exactly n in every group.

    Raises:
        ValueError: a shape, n or m that does not fit.
    """
    if not 1 <= n <= m <= 32:
        raise ValueError(f"n, m: want 1 <= n <= m <= 32, got {n}:{m}")
    if scores.dim() != 2 or scores.shape[1] % m:
        raise ValueError(f"scores: want [rows, cols] with cols a multiple of {m}, got {list(scores.shape)}")
    return nm_mask_reference(scores, n, m)
