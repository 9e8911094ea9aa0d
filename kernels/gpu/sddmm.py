"""The gradient of packed values: `grad^T x`, computed only where a block is stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.epilogue import rows_of
from trisparse.kernels.gpu.vector_spmm import bounds, stages, turned_over

TOKENS, SLOTS, THREADS = 64, 64, 128


@triton.jit
def gradient_of_vectors(
    grad_ptr, x_t_ptr, columns_ptr, pointers_ptr, order_ptr, out_ptr, tokens, stride, rows,
    N: tl.constexpr, RUN: tl.constexpr, TOKENS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """`SLOTS` slots of one group, over all tokens; `grad` is `[tokens, rows]`, `x_t` `[cols, stride]`."""
    group = tl.program_id(0)
    start, end = bounds(pointers_ptr, group)
    start += tl.program_id(1) * SLOTS
    if start >= end:
        return
    s = start + tl.arange(0, SLOTS)
    c = tl.load(columns_ptr + s, mask=s < end, other=-1).to(tl.int64)
    r = rows_of(order_ptr, group, N, RUN)
    total = tl.zeros((SLOTS, N), tl.float32)
    for step in range(tl.cdiv(tokens, TOKENS)):
        t = step * TOKENS + tl.arange(0, TOKENS)
        x = tl.load(
            x_t_ptr + c[:, None] * stride + t[None, :], mask=(c >= 0)[:, None] & (t < stride)[None, :], other=0.0
        )  # [SLOTS, TOKENS]
        inside = (t < tokens)[:, None] & (r < rows)[None, :]
        grad = tl.load(grad_ptr + t[:, None].to(tl.int64) * rows + r[None, :], mask=inside, other=0.0)
        total = tl.dot(x, grad, total, input_precision="ieee")
    where = s[:, None].to(tl.int64) * N + tl.arange(0, N)[None, :]
    tl.store(out_ptr + where, total.to(out_ptr.dtype.element_ty), mask=(s < end)[:, None])


@triton.jit
def gradient_of_blocks(
    grad_ptr, x_ptr, columns_ptr, groups_ptr, order_ptr, out_ptr, tokens, rows, cols,
    N: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One block, over all tokens."""
    slot = tl.program_id(0)
    r = tl.load(order_ptr + tl.load(groups_ptr + slot)) * N + tl.arange(0, N)
    c = tl.load(columns_ptr + slot).to(tl.int32) * M + tl.arange(0, M)
    total = tl.zeros((N, M), tl.float32)
    for step in range(tl.cdiv(tokens, TOKENS)):
        t = step * TOKENS + tl.arange(0, TOKENS)
        line = t.to(tl.int64)
        inside = (t < tokens)[:, None] & (c < cols)[None, :]
        x = tl.load(x_ptr + line[:, None] * cols + c[None, :], mask=inside, other=0.0)
        inside = (r < rows)[:, None] & (t < tokens)[None, :]
        # read the way it is multiplied: tl.trans of what was read goes through registers
        grad = tl.load(grad_ptr + line[None, :] * rows + r[:, None], mask=inside, other=0.0)
        total = tl.dot(grad, x, total, input_precision="ieee")
    where = slot.to(tl.int64) * (N * M) + tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :]
    tl.store(out_ptr + where, total.to(out_ptr.dtype.element_ty))


def sddmm(grad: Tensor, x: Tensor, matrix) -> Tensor:
    """Like `matrix.values`; `grad` `[tokens, rows]`, `x` `[tokens, cols]`, `matrix` a `PackedBlocks`."""
    n, m = matrix.block
    out = torch.empty_like(matrix.values)
    if not out.numel():
        return out
    grad, tokens = grad.contiguous(), grad.shape[0]
    if m == 1:
        x_t = turned_over(x)
        gradient_of_vectors[len(matrix.pointers) - 1, triton.cdiv(matrix.longest, SLOTS)](
            grad, x_t, matrix.columns, matrix.pointers, matrix.order, out, tokens, x_t.shape[1], matrix.rows,
            N=n, RUN=matrix.run, TOKENS=TOKENS, SLOTS=SLOTS, num_warps=warps(THREADS),
        )  # fmt: skip
        return out
    slots = torch.arange(len(out), dtype=torch.int32, device=x.device)
    groups = torch.searchsorted(matrix.pointers, slots, right=True, out_int32=True) - 1
    gradient_of_blocks[len(out),](
        grad, x.contiguous(), matrix.columns, groups, matrix.order, out, tokens, matrix.rows, matrix.cols,
        N=n, M=m, TOKENS=TOKENS, num_warps=warps(256 if n * m > 64 * 64 else THREADS),
        num_stages=stages(n + m, TOKENS, x.element_size()),
    )  # fmt: skip
    return out
