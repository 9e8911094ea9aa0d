"""The end of products with packed blocks: which rows a group holds, bias, activation, the store."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(order_ptr, group, N: tl.constexpr, RUN: tl.constexpr):
    """Rows of the dense matrix that a group holds, `[N]`, in runs that lie together."""
    n = tl.arange(0, N)
    first = tl.load(order_ptr + group * (N // RUN) + n // RUN) * RUN
    return tl.max_contiguous(tl.multiple_of(first + n % RUN, RUN), RUN)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """fp32 to fp32; GELU by the error function, or by tanh written with exp."""
    if ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "gelu":
        y = 0.5 * y * (1 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        inner = 0.7978845608028654 * (y + 0.044715 * y * y * y)
        y = y / (1 + tl.exp(-2 * inner))
    return y


@triton.jit
def finish(total, out_ptr, bias_ptr, t, r, tokens, rows, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr):
    """Store `[tokens, rows]` of sums."""
    if HAS_BIAS:
        total += tl.load(bias_ptr + r, mask=r < rows, other=0.0).to(tl.float32)[None, :]
    y = activate(total, ACTIVATION).to(out_ptr.dtype.element_ty)
    where = t[:, None].to(tl.int64) * rows + r[None, :]
    tl.store(out_ptr + where, y, mask=(t < tokens)[:, None] & (r < rows)[None, :])


@triton.jit
def add_shares(
    shares_ptr, bias_ptr, out_ptr, rows, shares, ROWS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr
):
    """`ROWS` rows of one token: the sum of `[share, tokens, rows]` in order."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token, tokens = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    total = tl.zeros((ROWS,), tl.float32)
    for share in range(shares):
        total += tl.load(shares_ptr + (share * tokens + token) * rows + r, mask=r < rows, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + r, mask=r < rows, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * rows + r, activate(total, ACTIVATION).to(out_ptr.dtype.element_ty), mask=r < rows)
