"""Keep the N best of every M consecutive values."""

import torch
from torch import Tensor

from trisparse.sparse_ops.checks import check_dtype
from trisparse.sparse_ops.choosing.sort_keys import sort_keys
from trisparse.sparse_ops.library import define

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


def _reference(scores, n, m, dim, magnitude) -> Tensor:
    scores = scores.abs() if magnitude else scores
    return nm_mask_reference(scores, n, m) if dim == 1 else nm_mask_reference(scores.t(), n, m).t().contiguous()


def _on_cpu(scores, n, m, dim, magnitude) -> Tensor:
    from trisparse.kernels.cpu.nm_mask import nm_mask

    found = nm_mask(scores, n, m, dim, magnitude)
    return _reference(scores, n, m, dim, magnitude) if found is None else found


def _kernel(scores, n, m, dim, magnitude) -> Tensor:
    from trisparse.kernels.gpu.nm_mask import nm_mask

    return nm_mask(scores, n, m, dim, magnitude)


def _fake(scores, n, m, dim, magnitude) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


_call = define(
    "nm_mask(Tensor scores, int n, int m, int dim, bool magnitude) -> Tensor", _reference, _kernel, _fake, _on_cpu
)


def nm_mask(scores: Tensor, n: int, m: int, dim: int = 1, magnitude: bool = False) -> Tensor:
    """Mask of the n highest of every m consecutive values; a tie keeps the lower index.

    NaN counts as higher than inf, so it is kept.

    Args:
        scores: `[rows, cols]` of any float dtype; weights, with `magnitude`.
        n: how many to keep of each group, 1 <= n <= m.
        m: consecutive values in a group, at most 32; divides the size of `dim`.
        dim: along which values are consecutive: 1 for groups within a row, 0 within a column.
        magnitude: order by |value|.

    Returns:
        bool `[rows, cols]`, True = kept, exactly n in every group.

    Raises:
        ValueError: a shape, n, m or dim that does not fit.
        TypeError: a dtype that does not.
    """
    if not 1 <= n <= m <= 32:
        raise ValueError(f"n, m: want 1 <= n <= m <= 32, got {n}:{m}")
    if dim not in (0, 1):
        raise ValueError(f"dim: want 0 or 1, got {dim}")
    check_dtype("scores", scores)
    if scores.dim() != 2 or scores.shape[dim] % m:
        raise ValueError(
            f"scores: want [rows, cols] with {('rows', 'cols')[dim]} a multiple of {m}, got {list(scores.shape)}"
        )
    return _call(scores, n, m, dim, magnitude)
