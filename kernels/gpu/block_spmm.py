"""Y = act(X W^T + b) with W in blocks N x M, and X W for the gradient of the input: a dense product a stored block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.epilogue import finish
from trisparse.kernels.gpu.vector_spmm import stages

TOKENS, DEPTH = 128, 64  # a program's tokens at most, and columns at once


@triton.jit
def multiply_blocks(
    x_ptr, values_ptr, places_ptr, slots_ptr, pointers_ptr, order_ptr, bias_ptr, out_ptr, tokens, inner, outer,
    N: tl.constexpr, M: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
    TRANSPOSED: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """`TOKENS` tokens and one group of rows of W, or with `TRANSPOSED` one block column.

    `x` is `[tokens, inner]`, `out` `[tokens, outer]`. Entry i multiplies the blocks of x at `places[i]`; transposed it
    is block `slots[i]`, else block i. A step takes a part of a block, or several that follow each other.
    """
    line = tl.program_id(0)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    start, end = tl.load(pointers_ptr + line), tl.load(pointers_ptr + line + 1)
    OUT: tl.constexpr = M if TRANSPOSED else N
    IN: tl.constexpr = N if TRANSPOSED else M
    o, k = tl.arange(0, OUT), tl.arange(0, DEPTH)
    ahead = start + (k // IN if IN < DEPTH else 0)
    place = tl.load(places_ptr + ahead, mask=ahead < end, other=0).to(tl.int32)
    slot = tl.load(slots_ptr + ahead, mask=ahead < end, other=0) if TRANSPOSED else ahead
    total = tl.zeros((TOKENS, OUT), tl.float32)
    for step in range(tl.cdiv((end - start) * IN, DEPTH)):
        i = step * DEPTH % IN + k % IN  # in the block
        stored = step * DEPTH + k < (end - start) * IN
        c = tl.max_contiguous(tl.multiple_of(place * IN + i, 16), 16)
        inside = (t < tokens)[:, None] & (stored & (c < inner))[None, :]
        x = tl.load(x_ptr + t[:, None].to(tl.int64) * inner + c[None, :], mask=inside, other=0.0)  # [TOKENS, DEPTH]
        if TRANSPOSED:
            first = tl.multiple_of(slot.to(tl.int64) * (N * M) + i * M, M)
            w = tl.load(values_ptr + first[:, None] + o[None, :], mask=stored[:, None], other=0.0)  # [DEPTH, OUT]
        else:
            first = tl.max_contiguous(tl.multiple_of(slot.to(tl.int64) * (N * M) + i, 16), 16)
            w = tl.load(values_ptr + first[None, :] + o[:, None] * M, mask=stored[None, :], other=0.0)  # [OUT, DEPTH]
            w = tl.trans(w)
        ahead = start + (step + 1) * DEPTH // IN + (k // IN if IN < DEPTH else 0)
        place = tl.load(places_ptr + ahead, mask=ahead < end, other=0).to(tl.int32)  # early: the next x waits for it
        slot = tl.load(slots_ptr + ahead, mask=ahead < end, other=0) if TRANSPOSED else ahead
        total = tl.dot(x, w, total, input_precision="ieee")
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
    places, slots, pointers = matrix.columns, matrix.columns, matrix.pointers
    if transposed:
        places, slots, pointers = matrix.order.index_select(0, matrix.groups_t), matrix.slots_t, matrix.pointers_t
    size = min(TOKENS, max(16, triton.next_power_of_2(tokens)))
    side = m if transposed else n
    multiply_blocks[len(pointers) - 1, triton.cdiv(tokens, size)](
        x, matrix.values, places, slots, pointers, matrix.order, out if bias is None else bias, out,
        tokens, inner, outer,
        N=n, M=m, TOKENS=size, DEPTH=DEPTH, TRANSPOSED=transposed, HAS_BIAS=bias is not None, ACTIVATION=activation,
        num_warps=warps(threads(size, side)), num_stages=stages(size + side, DEPTH, x.element_size()),
    )  # fmt: skip
    return out


def threads(tokens: int, outer: int) -> int:
    """Of a program with a tile of sums `[tokens, outer]`."""
    return 256 if tokens * outer > 64 * 128 else 128


def block_spmm(x: Tensor, matrix, bias: Tensor | None, activation: str) -> Tensor:
    """`[tokens, rows]`; arguments as in `trisparse.sparse_ops.block_spmm`, `matrix` a `PackedBlocks`."""
    return launch(x, matrix, bias, activation, transposed=False)
