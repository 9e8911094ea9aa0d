"""Y = act(X W^T + b) with W in blocks N x M, and X W for the gradient of the input: a dense product a stored block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.access import warps
from trisparse.kernels.epilogue import finish

TOKENS, DEPTH = 128, 64  # a program's tokens at most, and columns at once
_STAGE_BYTES = 1 << 16  # of shared memory that loads under way may take


@triton.jit
def multiply_blocks(
    x_ptr, values_ptr, columns_ptr, slots_ptr, pointers_ptr, order_ptr, bias_ptr, out_ptr, tokens, inner, outer,
    N: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """`TOKENS` tokens and one group of rows of W, or with `TRANSPOSED` one block column.

    `x` is `[tokens, inner]`, `out` `[tokens, outer]`. Forward, `columns` are block columns. Transposed, entry i is the
    block `slots[i]` of the group `columns[i]`.
    """
    line = tl.program_id(0)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    start, end = tl.load(pointers_ptr + line), tl.load(pointers_ptr + line + 1)
    OUT: tl.constexpr = M if TRANSPOSED else N
    IN: tl.constexpr = N if TRANSPOSED else M
    o, k = tl.arange(0, OUT), tl.arange(0, DEPTH)
    total = tl.zeros((TOKENS, OUT), tl.float32)
    for i in range(start, end):
        where = tl.load(columns_ptr + i).to(tl.int32)
        slot = i
        if TRANSPOSED:
            slot = tl.load(slots_ptr + i)
            where = tl.load(order_ptr + where)
        block = values_ptr + slot.to(tl.int64) * (N * M)
        for depth in tl.static_range(0, IN, DEPTH):
            c = where * IN + depth + k
            inside = (t < tokens)[:, None] & (c < inner)[None, :]
            x = tl.load(x_ptr + t[:, None].to(tl.int64) * inner + c[None, :], mask=inside, other=0.0)  # [TOKENS, DEPTH]
            if TRANSPOSED:
                w = tl.load(block + (depth + k)[:, None] * M + o[None, :])  # [DEPTH, OUT]
                total = tl.dot(x, w, total, input_precision="ieee")
            else:
                w = tl.load(block + o[:, None] * M + (depth + k)[None, :])  # [OUT, DEPTH]
                total = tl.dot(x, tl.trans(w), total, input_precision="ieee")
    first = line if TRANSPOSED else tl.load(order_ptr + line)
    finish(total, out_ptr, bias_ptr, t, first * OUT + o, tokens, outer, HAS_BIAS, ACTIVATION)


def launch(x: Tensor, matrix, bias: Tensor | None, activation: str, transposed: bool) -> Tensor:
    """`x @ W.T`, or with `transposed` `x @ W`."""
    x = x.contiguous()
    tokens, inner = x.shape
    outer = matrix.cols if transposed else matrix.rows
    out = torch.empty(tokens, outer, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    n, m = matrix.block
    columns, pointers = (matrix.groups_t, matrix.pointers_t) if transposed else (matrix.columns, matrix.pointers)
    size = min(TOKENS, max(16, triton.next_power_of_2(tokens)))
    depth = min(DEPTH, n if transposed else m)
    stage = (size * depth + n * m) * x.element_size()
    multiply_blocks[len(pointers) - 1, triton.cdiv(tokens, size)](
        x, matrix.values, columns, matrix.slots_t if transposed else columns, pointers, matrix.order,
        out if bias is None else bias, out, tokens, inner, outer,
        N=n, M=m, TOKENS=size, DEPTH=depth, TRANSPOSED=transposed, HAS_BIAS=bias is not None, ACTIVATION=activation,
        num_warps=warps(threads(size, m if transposed else n)), num_stages=max(1, min(4, _STAGE_BYTES // stage)),
    )  # fmt: skip
    return out


def threads(tokens: int, outer: int) -> int:
    """Of a program with a tile of sums `[tokens, outer]`."""
    return 256 if tokens * outer > 64 * 128 else 128


def block_spmm(x: Tensor, matrix, bias: Tensor | None, activation: str) -> Tensor:
    """`[tokens, rows]`; arguments as in `trisparse.sparse_ops.block_spmm`, `matrix` a `PackedBlocks`."""
    return launch(x, matrix, bias, activation, transposed=False)
