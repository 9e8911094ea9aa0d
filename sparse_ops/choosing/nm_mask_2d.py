"""Transposable 2:4 masks."""

import torch
from torch import Tensor

from trisparse.kernels.tile_patterns import CLASSES, LIMIT, PAIRS
from trisparse.sparse_ops.checks import check_dtype
from trisparse.sparse_ops.library import define


def nm_mask_2d_reference(weight: Tensor) -> Tensor:
    """Plain torch; see `nm_mask_2d`."""
    rows, cols = weight.shape
    size = weight.float().abs().nan_to_num(nan=LIMIT, posinf=LIMIT).clamp(max=LIMIT)
    tiles = size.view(rows // 4, 4, cols // 4, 4).permute(1, 3, 0, 2)  # [row, column, down, across]
    pairs = [torch.stack([row[a] + row[b] for a, b in PAIRS]) for row in tiles]  # 4 of [pair, down, across]
    best = tiles.new_full(tiles.shape[2:], -1.0)
    chosen = torch.zeros((4, *best.shape), dtype=torch.int64, device=weight.device)  # each row's pair
    for upper, lower in CLASSES:
        above, below = torch.tensor(upper, device=weight.device), torch.tensor(lower, device=weight.device)
        top, i = (pairs[0][above[:, 0]] + pairs[1][above[:, 1]]).max(0)
        bottom, j = (pairs[2][below[:, 0]] + pairs[3][below[:, 1]]).max(0)
        better = top + bottom > best
        best = torch.where(better, top + bottom, best)
        chosen = torch.where(better, torch.stack([*above[i].unbind(-1), *below[j].unbind(-1)]), chosen)
    taken = torch.zeros((6, 4), dtype=torch.bool, device=weight.device)
    for index, (a, b) in enumerate(PAIRS):
        taken[index, a] = taken[index, b] = True
    return taken[chosen].permute(1, 0, 2, 3).reshape(rows, cols)  # [row, down, across, column]


def _kernel(weight) -> Tensor:
    from trisparse.kernels.gpu.nm_mask_2d import nm_mask_2d

    return nm_mask_2d(weight)


def _fake(weight) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.bool)


define("nm_mask_2d(Tensor weight) -> Tensor", nm_mask_2d_reference, _kernel, _fake)


def nm_mask_2d(weight: Tensor) -> Tensor:
    """Mask with two of four kept in every row and every column of each 4 x 4 tile, so W and W^T are 2:4.

    The best of the 90 such patterns: it keeps the most magnitude, in fp32. Among equals the first, with
    patterns in the order of their upper two rows. An infinite or NaN weight counts as 2^124.
    Source: transposable masks, arXiv 2102.08124.

    Args:
        weight: `[rows, cols]` of any float dtype, both multiples of 4.

    Returns:
        bool `[rows, cols]`, True = kept.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: a dtype that does not.
    """
    check_dtype("weight", weight)
    if weight.dim() != 2 or weight.shape[0] % 4 or weight.shape[1] % 4:
        raise ValueError(f"weight: want [rows, cols], both multiples of 4, got {list(weight.shape)}")
    return torch.ops.trisparse.nm_mask_2d(weight)
