"""X W with W packed in blocks: the gradient of a product's input.

Blocks are multiplied as in the product itself. The vectors of one column of W lie in groups that share nothing with
those of its neighbours, so there is no tile for tensor cores: their weights are multiplied one row at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.block_spmm import launch
from trisparse.kernels.gpu.vector_spmm import turned_over

TOKENS, COLS, THREADS = 64, 32, 128


@triton.jit
def multiply_vectors_t(
    grad_t_ptr, values_ptr, slots_ptr, groups_ptr, pointers_ptr, order_ptr, out_ptr, tokens, stride, rows, cols,
    N: tl.constexpr, RUN: tl.constexpr, TOKENS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """`TOKENS` tokens and `COLS` columns of W; `grad_t` is `[rows, stride]`."""
    c = tl.program_id(0) * COLS + tl.arange(0, COLS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    start = tl.load(pointers_ptr + c, mask=c < cols, other=0)
    count = tl.load(pointers_ptr + c + 1, mask=c < cols, other=0) - start
    AT_ONCE: tl.constexpr = min(N, 8)  # more take more registers than AMD has
    total = tl.zeros((COLS, TOKENS), tl.float32)
    for step in range(tl.max(count, 0) * (N // AT_ONCE)):
        i, part = step // (N // AT_ONCE), step % (N // AT_ONCE) * AT_ONCE
        slot = tl.load(slots_ptr + start + i, mask=i < count, other=0).to(tl.int64)
        group = tl.load(groups_ptr + start + i, mask=i < count, other=0)
        for j in tl.static_range(AT_ONCE):
            run = tl.load(order_ptr + group * (N // RUN) + part // RUN + j // RUN, mask=i < count, other=0)
            row = run * RUN + part % RUN + j % RUN
            inside = (i < count) & (row < rows)
            w = tl.load(values_ptr + slot * N + part + j, mask=inside, other=0.0).to(tl.float32)
            where = row[:, None].to(tl.int64) * stride + t[None, :]
            grad = tl.load(grad_t_ptr + where, mask=inside[:, None] & (t < stride)[None, :], other=0.0)
            total += w[:, None] * grad.to(tl.float32)  # [COLS, TOKENS]
    where = t[None, :].to(tl.int64) * cols + c[:, None]
    tl.store(out_ptr + where, total.to(out_ptr.dtype.element_ty), mask=(c < cols)[:, None] & (t < tokens)[None, :])


def spmm_t(grad: Tensor, matrix) -> Tensor:
    """`[tokens, cols]` of `grad` `[tokens, rows]`; `matrix` a `PackedBlocks` that was packed `transposed`."""
    n, m = matrix.block
    if m > 1:
        return launch(grad, matrix, None, "none", transposed=True)
    tokens, cols = grad.shape[0], matrix.cols
    out = torch.empty(tokens, cols, dtype=grad.dtype, device=grad.device)
    if not out.numel():
        return out
    grad_t = turned_over(grad)
    multiply_vectors_t[triton.cdiv(cols, COLS), triton.cdiv(tokens, TOKENS)](
        grad_t, matrix.values, matrix.slots_t, matrix.groups_t, matrix.pointers_t, matrix.order, out,
        tokens, grad_t.shape[1], matrix.rows, cols,
        N=n, RUN=matrix.run, TOKENS=TOKENS, COLS=COLS, num_warps=warps(THREADS),
    )  # fmt: skip
    return out
