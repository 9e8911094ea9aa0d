"""Packed 2:4 matrix times few tokens on sparse tensor cores: W goes from memory to them as it is stored.

With few tokens the weights' bytes set the pace, and a packed weight has 9/16 of them. No weight is unpacked and nothing
passes through shared memory but sums: warps of a program share out the columns of its rows and are added up at the
end, in order, so the result does not depend on timing. NVIDIA's alone, from Ampere on.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from trisparse.kernels.gpu.epilogue import add_shares
from trisparse.kernels.gpu.sparse_mma import add_products, as_one_tensor, load_16_bytes, nibbles_of, pair_of
from trisparse.kernels.layouts_24 import padded

MOST_TOKENS = 16  # with more, x is read more often than W, and unpacking W once for all tokens is faster
ARRANGE_WARPS = 2
SUM_ROWS = 256  # of a program that adds shares up


@triton.jit(do_not_specialize=["tokens", "steps"])
def multiply_sparse(
    x_ptr, packed_ptr, bias_ptr, out_ptr, tokens, rows, padded_rows, padded_cols, steps,
    LAYOUT: tl.constexpr, TILES: tl.constexpr, HIGH: tl.constexpr, STEPS: tl.constexpr,
    DOWN: tl.constexpr, ACROSS: tl.constexpr, IS_ARRANGED: tl.constexpr, IS_SHARE: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """`16 * HIGH * DOWN` rows times `8 * TILES` tokens on sparse tensor cores, in `steps` of 64 columns.

    `DOWN` warps take rows of their own, and `ACROSS` columns of these, so that `DOWN` warps find x in L1.
    `x` is `[tokens, padded_cols]`, or as `arrange` leaves it. A fragment is a tuple of tensors; see `sparse_mma`.
    """
    BF16: tl.constexpr = packed_ptr.dtype.element_ty == tl.bfloat16
    thread = tl.arange(0, ACROSS * DOWN * 32)
    warp, lane = thread // 32, thread % 32
    g, t = lane // 4, lane % 4
    r0 = (tl.program_id(0) * DOWN + warp % DOWN) * (16 * HIGH)
    all_steps = padded_cols // 64
    first = tl.program_id(1) * steps
    last = tl.minimum(first + steps, all_steps)
    x_pairs = x_ptr.to(tl.pointer_type(tl.int32))
    values = packed_ptr.to(tl.int64) + (r0 + g).to(tl.int64) * padded_cols + t * 16
    zero = tl.zeros(thread.shape, tl.float32)
    sums = (zero,) * (4 * TILES * HIGH)
    for turn in range(first, last, ACROSS * STEPS):
        a, e, b = (), (), ()
        for s in tl.static_range(STEPS):  # all loads before all products, so that they are under way together
            step = turn + warp // DOWN * STEPS + s
            inside = (step < last) & (r0 < padded_rows)
            for h in tl.static_range(HIGH):
                for i in tl.static_range(2):
                    where = values + (h * 16 + i * 8) * padded_cols.to(tl.int64) + step * 64
                    a += load_16_bytes(where, inside.to(tl.int32))
                row = r0 + h * 16 + g
                e += (nibbles_of(packed_ptr, row, t, step, inside, padded_rows, padded_cols, LAYOUT),)  # type: ignore[assignment]
            for n in tl.static_range(TILES):
                if IS_ARRANGED:
                    where = x_ptr.to(tl.int64) + ((n * all_steps + step) * 32 + lane).to(tl.int64) * 32
                    b += load_16_bytes(where, inside.to(tl.int32)) + load_16_bytes(where + 16, inside.to(tl.int32))
                else:
                    token = n * 8 + g
                    for i in tl.static_range(8):
                        pair = x_pairs + (token * padded_cols + step * 64) // 2 + pair_of(t, i)
                        b += (tl.load(pair, mask=inside & (token < tokens), other=0),)  # type: ignore[assignment]
        for s in tl.static_range(STEPS):
            for h in tl.static_range(HIGH):
                for n in tl.static_range(TILES):
                    sums = add_products(sums, a, b, e, s * HIGH + h, s * TILES + n, h * TILES + n, BF16)
    thread, two = tl.arange(0, DOWN * 32)[:, None, None], tl.arange(0, 2)
    g, t, r0 = thread % 32 // 4, thread % 4, (tl.program_id(0) * DOWN + thread // 32) * (16 * HIGH)
    for h in tl.static_range(HIGH):
        for n in tl.static_range(TILES):
            four = as_one_tensor(sums, h * TILES + n)  # [threads, row, token]
            total = tl.sum(tl.reshape(four, (ACROSS, DOWN * 32, 2, 2)), 0)
            r = r0 + h * 16 + g + two[None, :, None] * 8
            token = n * 8 + t * 2 + two[None, None, :]
            mask = (r < rows) & (token < tokens)
            if IS_SHARE:
                shares_ptr = out_ptr + tl.program_id(1).to(tl.int64) * tokens * rows
                tl.store(shares_ptr + token * rows + r, total, mask=mask)
            else:
                if HAS_BIAS:
                    total += tl.load(bias_ptr + r, mask=r < rows, other=0.0).to(tl.float32)
                tl.store(out_ptr + token * rows + r, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens"])
def arrange(x_ptr, out_ptr, tokens, cols, padded_cols):
    """x as fragments of `multiply_sparse`: `[token // 8, step, lane, register]`, pairs of values; a tile and a step."""
    step, n = tl.program_id(0), tl.program_id(1)
    lane, i = tl.arange(0, 32)[:, None, None], tl.arange(0, 8)[None, :, None]
    token, column = n * 8 + lane // 4, step * 64 + pair_of(lane % 4, i) * 2 + tl.arange(0, 2)[None, None, :]
    inside = (token < tokens) & (column < cols)
    x = tl.load(x_ptr + token.to(tl.int64) * cols + column, mask=inside, other=0.0)
    start = (n * (padded_cols // 64) + step) * 512
    tl.store(out_ptr + start + lane * 16 + i * 2 + tl.arange(0, 2)[None, None, :], x)


class Config(NamedTuple):
    """How `multiply_sparse` is launched.

    Attributes:
        high: fragments of 16 rows a program.
        steps: of 64 columns that a warp has under way.
        down: warps of a program that have rows of their own.
        across: warps that share out the columns of the same rows.
        shares: programs that share out the columns of the same rows; their sums are added by another kernel.
        is_arranged: whether a kernel before brings x into the order of fragments.
    """

    high: int
    steps: int
    down: int
    across: int
    shares: int = 1
    is_arranged: bool = False


def config_for(tokens: int, rows: int, cols: int) -> Config:
    """The launch for a padded matrix and at most `MOST_TOKENS`, as an H200 was fastest; 8 tokens are a fragment."""
    if tokens <= 8:
        is_narrow = rows <= 1024 and cols > 2048  # few programs, each with much to read
        return Config(high=1, steps=4 if cols < 2048 else 8, down=1, across=8 if is_narrow else 4)
    if rows * cols > 1e8:
        return Config(high=2, steps=2, down=2, across=2)
    if rows > 8192:
        return Config(high=1, steps=2, down=2, across=4, is_arranged=True)
    return Config(high=1, steps=4, down=1, across=4)


@functools.cache
def has_sparse_cores(device: torch.device) -> bool:
    """Whether `multiply_sparse` runs there."""
    return device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0)


def add_up(sums: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Into `out`, `[tokens, rows]`, what is `[share, tokens, rows]`, in order."""
    tokens, rows = out.shape
    add_shares[triton.cdiv(rows, SUM_ROWS), tokens](
        sums, out if bias is None else bias, out, rows, len(sums),
        ROWS=SUM_ROWS, HAS_BIAS=bias is not None, ACTIVATION="none",
    )  # fmt: skip


def mm_24_sparse(
    x: Tensor, packed: Tensor, bias: Tensor | None, rows: int, cols: int, layout: str, config: Config
) -> Tensor:
    """`mm_24` on sparse tensor cores; x is contiguous and has tokens."""
    tokens, (high, wide) = x.shape[0], padded(rows, cols, layout)
    tiles = triton.next_power_of_2(-(-tokens // 8))
    steps = -(-wide // (64 * config.shares))
    count = -(-wide // (64 * steps))
    if config.is_arranged:
        arranged = torch.empty(tiles * 8 * wide, dtype=x.dtype, device=x.device)
        arrange[wide // 64, tiles](x, arranged, tokens, cols, wide, num_warps=ARRANGE_WARPS)
        x = arranged
    elif wide > cols:
        x = pad(x, (0, wide - cols))
    out = torch.empty(tokens, rows, dtype=x.dtype, device=x.device)
    target = out if count == 1 else torch.empty(count, tokens, rows, dtype=torch.float32, device=x.device)
    multiply_sparse[triton.cdiv(high, 16 * config.high * config.down), count](
        x, packed, out if bias is None else bias, target, tokens, rows, high, wide, steps,
        LAYOUT=layout, TILES=tiles, HIGH=config.high, STEPS=config.steps, DOWN=config.down, ACROSS=config.across,
        IS_ARRANGED=config.is_arranged, IS_SHARE=count > 1, HAS_BIAS=bias is not None,
        num_warps=config.down * config.across,
    )  # fmt: skip
    if count > 1:
        add_up(target, bias, out)
    return out
