"""The mask that patterns of 4 x 4 tiles stand for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.nm_mask_2d import as_bytes

DOWN, ACROSS, THREADS = 1, 256, 128  # tiles of 4 x 4 a program, and its threads


@triton.jit
def write_mask(patterns_ptr, mask_ptr, rows, cols, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """`DOWN x ACROSS` tiles; a row of a tile is written as the four bytes of an integer."""
    i = tl.program_id(0) * DOWN + tl.arange(0, DOWN)[:, None]
    t = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)[None, :]
    inside = (i * 4 < rows) & (t * 4 < cols)
    bits = tl.load(patterns_ptr + i.to(tl.int64) * (cols // 4) + t, mask=inside, other=0).to(tl.int32)
    for r in tl.static_range(4):
        offs = (i * 4 + r).to(tl.int64) * (cols // 4) + t
        tl.store(mask_ptr + offs, as_bytes(bits >> (4 * r)), mask=inside & (i * 4 + r < rows))


def mask_24(patterns: Tensor, rows: int, cols: int) -> Tensor:
    """bool `[rows, cols]`; arguments as in `trisparse.sparse_ops.mask_24`."""
    mask = torch.empty((rows, cols), dtype=torch.bool, device=patterns.device)
    if mask.numel():
        grid = triton.cdiv(triton.cdiv(rows, 4), DOWN), triton.cdiv(cols // 4, ACROSS)
        write_mask[grid](
            patterns.contiguous(), mask.view(torch.int32), rows, cols,
            DOWN=DOWN, ACROSS=ACROSS, num_warps=warps(THREADS),
        )  # fmt: skip
    return mask
