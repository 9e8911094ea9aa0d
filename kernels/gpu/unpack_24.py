"""Unpacking of 2:4 matrices; for the formats see `layouts_24`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.quads import join_quads, load_bits, spread
from trisparse.kernels.layouts_24 import padded

ROWS, QUADS, THREADS = 32, 16, 128  # rows and quads a program, and its threads


@triton.jit
def unpack_rows(
    packed_ptr, dense_ptr, rows, cols, padded_rows, padded_cols,
    LAYOUT: tl.constexpr, ROWS: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """`ROWS` rows of `QUADS` quads."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q0 = tl.program_id(1) * QUADS
    bits = load_bits(packed_ptr, tl.program_id(0) * ROWS, q0, padded_rows, padded_cols, LAYOUT, ROWS, QUADS)
    where = r[:, None].to(tl.int64) * (padded_cols // 2) + (q0 * 2 + tl.arange(0, QUADS * 2))[None, :]
    first, second = tl.split(tl.reshape(tl.load(packed_ptr + where), (ROWS, QUADS, 2)))
    x0, x1, x2, x3 = spread(bits, first, second)
    c = q0 * 4 + tl.arange(0, QUADS * 4)
    inside = (r < rows)[:, None] & (c < cols)[None, :]
    offs = r[:, None].to(tl.int64) * cols + c[None, :]
    tl.store(dense_ptr + offs, join_quads(x0, x1, x2, x3, ROWS, QUADS), mask=inside)


def unpack_24(packed: Tensor, rows: int, cols: int, layout: str) -> Tensor:
    """Dense `[rows, cols]`; arguments as in `trisparse.sparse_ops.unpack_24`."""
    dense = torch.empty(rows, cols, dtype=packed.dtype, device=packed.device)
    if dense.numel():
        high, wide = padded(rows, cols, layout)
        unpack_rows[high // ROWS, wide // (4 * QUADS)](
            packed, dense, rows, cols, high, wide,
            LAYOUT=layout, ROWS=ROWS, QUADS=QUADS, num_warps=warps(THREADS),
        )  # fmt: skip
    return dense
