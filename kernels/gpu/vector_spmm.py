"""Y = act(X W^T + b) with W in column vectors N x 1: gather the columns of X that a group of rows needs.

With many tokens X is turned over once, so that a column is contiguous, and tensor cores multiply `[tokens, STEP]` by
`[STEP, N]`. With few, the weights' bytes set the pace: products are made without tensor cores, from X as it is, and
the slots of a group are shared out to several programs whose sums are added in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.epilogue import add_shares, finish, rows_of

FEW_TOKENS = 8
TOKENS, STEP = 128, 64  # a program's tokens, and slots at once
ROWS = 256  # of a program that adds shares up
THREADS, FEW_THREADS = 128, 128
_STAGE_BYTES = 96 << 10  # of shared memory for loads under way; AMD has 64 KiB, and keeps two stages of three there
_LEAST_SHARE = 256  # slots below which a share does not pay for its sum
_CPU_PROCESSORS = 2  # what a CPU under the interpreter counts as


@triton.jit
def bounds(pointers_ptr, group):
    """Where the slots of a group begin and end, multiples of 16."""
    return tl.multiple_of(tl.load(pointers_ptr + group), 16), tl.multiple_of(tl.load(pointers_ptr + group + 1), 16)


@triton.jit
def multiply_vectors(
    x_t_ptr, values_ptr, columns_ptr, pointers_ptr, order_ptr, bias_ptr, out_ptr, tokens, stride, rows,
    N: tl.constexpr, RUN: tl.constexpr, TOKENS: tl.constexpr, STEP: tl.constexpr,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """`TOKENS` tokens and one group; `x_t` is `[cols, stride]`."""
    group = tl.program_id(0)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    n = tl.arange(0, N)
    start, end = bounds(pointers_ptr, group)
    k = tl.arange(0, STEP)
    c = tl.load(columns_ptr + start + k, mask=start + k < end, other=-1)
    total = tl.zeros((TOKENS, N), tl.float32)
    for step in range(0, tl.cdiv(end - start, STEP)):
        s = start + step * STEP + k
        inside = (t < stride)[:, None] & (c >= 0)[None, :]
        x = tl.load(x_t_ptr + c[None, :].to(tl.int64) * stride + t[:, None], mask=inside, other=0.0)  # [TOKENS, STEP]
        w = tl.load(values_ptr + s[:, None].to(tl.int64) * N + n[None, :], mask=(s < end)[:, None], other=0.0)
        c = tl.load(columns_ptr + s + STEP, mask=s + STEP < end, other=-1)  # early: x of the next step waits for it
        total = tl.dot(x, w, total, input_precision="ieee")
    r = rows_of(order_ptr, group, N, RUN)
    finish(total, out_ptr, bias_ptr, t, r, tokens, rows, HAS_BIAS, ACTIVATION)


@triton.jit
def multiply_vectors_few(
    x_ptr, values_ptr, columns_ptr, pointers_ptr, order_ptr, bias_ptr, out_ptr, tokens, cols, rows, shares,
    N: tl.constexpr, RUN: tl.constexpr, TOKENS: tl.constexpr, STEP: tl.constexpr,
    IS_SHARE: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """All tokens and a share of one group; shares go to `[share, tokens, rows]` in fp32, without bias."""
    group, share = tl.program_id(0), tl.program_id(1)
    t = tl.arange(0, TOKENS)
    start, end = bounds(pointers_ptr, group)
    length = tl.cdiv(tl.cdiv(end - start, shares), 16) * 16
    start += share * length
    end = tl.minimum(end, start + length)
    k, i = tl.arange(0, STEP), tl.arange(0, STEP * N)
    c = tl.load(columns_ptr + start + k, mask=start + k < end, other=-1)
    total = tl.zeros((STEP, N, TOKENS), tl.float32)
    for step in range(0, tl.cdiv(end - start, STEP)):
        first = start + step * STEP
        inside = (c >= 0)[:, None, None] & (t < tokens)[None, None, :]
        where = t[None, None, :].to(tl.int64) * cols + c[:, None, None].to(tl.int64)
        x = tl.load(x_ptr + where, mask=inside, other=0.0)  # [STEP, 1, TOKENS]
        w = tl.load(values_ptr + first.to(tl.int64) * N + i, mask=i < (end - first) * N, other=0.0)
        c = tl.load(columns_ptr + first + STEP + k, mask=first + STEP + k < end, other=-1)
        total += tl.reshape(w.to(tl.float32), (STEP, N, 1)) * x.to(tl.float32)
    whole = tl.trans(tl.sum(total, 0))  # [TOKENS, N]
    r = rows_of(order_ptr, group, N, RUN)
    if IS_SHARE:
        where = share.to(tl.int64) * tokens * rows + t[:, None] * rows + r[None, :]
        tl.store(out_ptr + where, whole, mask=(t < tokens)[:, None] & (r < rows)[None, :])
    else:
        finish(whole, out_ptr, bias_ptr, t, r, tokens, rows, HAS_BIAS, ACTIVATION)


def turned_over(x: Tensor) -> Tensor:
    """`[cols, tokens]`, tokens rounded up to 16 with zeros, so that rows begin at multiples of 16."""
    tokens, cols = x.shape
    width = -(-tokens // 16) * 16
    out = x.new_empty(cols, width)
    out[:, :tokens] = x.t()
    out[:, tokens:] = 0
    return out


def stages(lines: int, depth: int, itemsize: int) -> int:
    """Steps under way at once, in which `lines` of `depth` numbers are loaded."""
    return max(1, min(3, _STAGE_BYTES // (lines * depth * itemsize)))


def few_step(n: int, tokens: int) -> int:
    """Slots at once with few tokens: 16 bytes a thread, or 32 where registers are left."""
    return (2048 if tokens == 1 else 1024) // n


def shares_of(groups: int, longest: int, processors: int) -> int:
    """Programs a group so that programs fill the device four times."""
    return max(1, min(-(-4 * processors // groups), longest // _LEAST_SHARE))


def vector_spmm(x: Tensor, matrix, bias: Tensor | None, activation: str) -> Tensor:
    """`[tokens, rows]`; arguments as in `trisparse.sparse_ops.vector_spmm`, `matrix` a `PackedBlocks`."""
    x = x.contiguous()
    tokens, rows = x.shape[0], matrix.rows
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    n, groups = matrix.block[0], len(matrix.pointers) - 1
    parts = matrix.values, matrix.columns, matrix.pointers, matrix.order, out if bias is None else bias
    constants = {"N": n, "RUN": matrix.run, "HAS_BIAS": bias is not None, "ACTIVATION": activation}
    if tokens > FEW_TOKENS:
        x_t = turned_over(x)
        size = min(TOKENS, triton.next_power_of_2(tokens))
        multiply_vectors[groups, triton.cdiv(tokens, size)](
            x_t, *parts, out, tokens, x_t.shape[1], rows,
            TOKENS=size, STEP=STEP, num_warps=warps(THREADS),
            num_stages=stages(size + n, STEP, x.element_size()), **constants,
        )  # fmt: skip
        return out
    width = triton.next_power_of_2(tokens)
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else _CPU_PROCESSORS
    shares = shares_of(groups, matrix.longest, processors)
    target = out if shares == 1 else torch.empty(shares, tokens, rows, dtype=torch.float32, device=x.device)
    if shares > 1:
        constants |= {"HAS_BIAS": False, "ACTIVATION": "none"}
    multiply_vectors_few[groups, shares](
        x, *parts, target, tokens, matrix.cols, rows, shares,
        TOKENS=width, STEP=few_step(n, width), IS_SHARE=shares > 1,
        num_warps=warps(FEW_THREADS), **constants,
    )  # fmt: skip
    if shares > 1:
        add_shares[triton.cdiv(rows, ROWS), tokens](
            target, parts[-1], out, rows, shares, ROWS=ROWS, HAS_BIAS=bias is not None, ACTIVATION=activation
        )
    return out
