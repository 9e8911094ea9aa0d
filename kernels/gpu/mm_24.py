"""Packed 2:4 matrix times few tokens: Y = X W^T, W unpacked in registers on its way to the tensor cores.

This is for devices without sparse tensor cores of NVIDIA's, and for the interpreter; the others run `mm_24_sparse`.
A program takes 64 rows of W and a share of its columns; shares are added up afterwards in their order, so the result
does not depend on timing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.mm_24_sparse import MOST_TOKENS, add_up, config_for, has_sparse_cores, mm_24_sparse
from trisparse.kernels.gpu.quads import join_quads, load_bits, spread
from trisparse.kernels.layouts_24 import padded

ROWS, COLS, THREADS = 64, 64, 128
_LEAST_SHARE = 256  # columns below which a share does not pay for its sum
_CPU_PROCESSORS = 4  # what a CPU under the interpreter counts as


@triton.jit
def multiply_few(
    x_ptr, packed_ptr, bias_ptr, out_ptr, tokens, rows, cols, padded_rows, padded_cols, steps,
    LAYOUT: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    IS_SHARE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """`ROWS` rows and `steps * COLS` columns of W; shares go to `[share, tokens, rows]` in fp32, without bias."""
    r0 = tl.program_id(0) * ROWS
    r = r0 + tl.arange(0, ROWS)
    t = tl.arange(0, TOKENS)
    start = tl.program_id(1) * steps
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for step in range(start, tl.minimum(start + steps, padded_cols // COLS)):
        k = step * COLS
        bits = load_bits(packed_ptr, r0, k // 4, padded_rows, padded_cols, LAYOUT, ROWS, COLS // 4)
        where = r[:, None].to(tl.int64) * (padded_cols // 2) + (k // 2 + tl.arange(0, COLS // 2))[None, :]
        first, second = tl.split(tl.reshape(tl.load(packed_ptr + where), (ROWS, COLS // 4, 2)))
        x0, x1, x2, x3 = spread(bits, first, second)
        c = k + tl.arange(0, COLS)
        inside = (t < tokens)[None, :] & (c < cols)[:, None]
        x = tl.load(x_ptr + t[None, :] * cols + c[:, None], mask=inside, other=0.0)  # [COLS, TOKENS]
        total = tl.dot(join_quads(x0, x1, x2, x3, ROWS, COLS // 4), x, total)
    inside = (t < tokens)[None, :] & (r < rows)[:, None]
    where = t[None, :] * rows + r[:, None]
    if IS_SHARE:
        tl.store(out_ptr + tl.program_id(1).to(tl.int64) * tokens * rows + where, total, mask=inside)
    else:
        if HAS_BIAS:
            total += tl.load(bias_ptr + r, mask=r < rows, other=0.0).to(tl.float32)[:, None]
        tl.store(out_ptr + where, total.to(out_ptr.dtype.element_ty), mask=inside)


def shares(rows: int, cols: int, processors: int) -> tuple[int, int]:
    """In how many shares to cut the columns so that programs fill the device twice, and steps of `COLS` in each."""
    count = max(1, min(-(-2 * processors * ROWS // rows), cols // _LEAST_SHARE))
    steps = -(-cols // (count * COLS))
    return -(-cols // (steps * COLS)), steps


def mm_24_spread(x: Tensor, packed: Tensor, bias: Tensor | None, rows: int, cols: int, layout: str) -> Tensor:
    """`mm_24` by `multiply_few`; x is contiguous and has tokens."""
    tokens, (high, wide) = x.shape[0], padded(rows, cols, layout)
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    is_cuda = x.is_cuda
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if is_cuda else _CPU_PROCESSORS
    count, steps = shares(high, wide, processors)
    target = out if count == 1 else torch.empty(count, tokens, rows, dtype=torch.float32, device=x.device)
    multiply_few[high // ROWS, count](
        x, packed, packed if bias is None else bias, target, tokens, rows, cols, high, wide, steps,
        LAYOUT=layout, TOKENS=max(16, triton.next_power_of_2(tokens)), ROWS=ROWS, COLS=COLS,
        IS_SHARE=count > 1, HAS_BIAS=bias is not None, num_warps=warps(THREADS), num_stages=3,
    )  # fmt: skip
    if count > 1:
        add_up(target, bias, out)
    return out


def mm_24(x: Tensor, packed: Tensor, bias: Tensor | None, rows: int, cols: int, layout: str) -> Tensor:
    """`[tokens, rows]`; arguments as in `trisparse.sparse_ops.mm_24`."""
    x = x.contiguous()
    if not x.shape[0] or not rows:
        return x.new_empty(x.shape[0], rows)
    if len(x) <= MOST_TOKENS and has_sparse_cores(x.device):
        return mm_24_sparse(x, packed, bias, rows, cols, layout, config_for(x.shape[0], *padded(rows, cols, layout)))
    return mm_24_spread(x, packed, bias, rows, cols, layout)
