"""Transposable 2:4 masks: two of four in every row and every column of each 4 x 4 tile, the most magnitude kept.

The search goes over the classes of `tile_patterns`, a tile a thread, without branches.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.tile_patterns import CLASSES, LIMIT, PAIRS

_LIMIT = tl.constexpr(LIMIT)
DOWN, ACROSS, THREADS = 1, 256, 128  # tiles of 4 x 4 a program, and its threads


@triton.constexpr_function
def _count() -> int:
    return len(CLASSES)


@triton.constexpr_function
def _options(number: int, lower: int) -> int:
    """How many halves a class has."""
    return len(CLASSES[number][lower])


@triton.constexpr_function
def _pair(number: int, lower: int, option: int, row: int) -> int:
    """The pair that the first or second row of a half takes."""
    return CLASSES[number][lower][option][row]


@triton.constexpr_function
def _bits(number: int, upper: int, lower: int) -> int:
    """A pattern of a class as 16 bits, column + 4 * row, from an option of each half."""
    pairs = CLASSES[number][0][upper] + CLASSES[number][1][lower]
    return sum(1 << (column + 4 * row) for row, pair in enumerate(pairs) for column in PAIRS[pair])


@triton.constexpr_function
def _first_and_change(number: int) -> int:
    """The first pattern of a class, and above it what changes where the halves take their other option."""
    first = _bits(number, 0, 0)
    number = first | (first ^ _bits(number, 1, 1)) << 16
    return number - (number >> 31 << 32)


@triton.jit
def split_quads(x, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """The four places of every quad: `[DOWN, ACROSS * 4]` to four `[DOWN, ACROSS]`."""
    even, odd = tl.split(tl.reshape(x, (DOWN, ACROSS, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _size(x):
    size = tl.abs(x.to(tl.float32))
    return tl.where(size <= _LIMIT, size, _LIMIT)  # NaN too counts as the largest


@triton.jit
def pair_sums(x0, x1, x2, x3):
    """Sums of the magnitudes of each pair in one row of every tile, from its four places."""
    x0, x1, x2, x3 = _size(x0), _size(x1), _size(x2), _size(x3)
    return x0 + x1, x0 + x2, x0 + x3, x1 + x2, x1 + x3, x2 + x3


@triton.jit
def _sum(first, second, CLASS: tl.constexpr, LOWER: tl.constexpr, OPTION: tl.constexpr):
    return first[_pair(CLASS, LOWER, OPTION, 0)] + second[_pair(CLASS, LOWER, OPTION, 1)]


@triton.jit
def _best_of_many(first, second, CLASS: tl.constexpr, LOWER: tl.constexpr):
    """The best of a class's halves, and its bits."""
    best = _sum(first, second, CLASS, LOWER, 0)
    MASK: tl.constexpr = 0xFF00 if LOWER else 0xFF
    bits = tl.full(best.shape, _bits(CLASS, 0, 0) & MASK, tl.int32)
    for i in tl.static_range(1, _options(CLASS, LOWER)):
        value = _sum(first, second, CLASS, LOWER, i)
        bits = tl.where(value > best, _bits(CLASS, i, i) & MASK, bits)
        best = tl.maximum(best, value)
    return best, bits


@triton.jit
def best_tile(r0, r1, r2, r3):
    """int32 bits column + 4 * row of the best pattern, from each row's sums of pairs.

    Of a half with two options only a difference is kept, negative where the second is better: the options of the
    best class are looked at once, at the end.
    """
    best = tl.full(r0[0].shape, -1.0, tl.float32)
    bits = tl.zeros(best.shape, tl.int32)
    above, below = best, best
    for i in tl.static_range(_count()):
        u, v = _sum(r0, r1, i, 0, 0), _sum(r2, r3, i, 1, 0)
        if _options(i, 0) == 2:
            other_u, other_v = _sum(r0, r1, i, 0, 1), _sum(r2, r3, i, 1, 1)
            value = tl.maximum(u, other_u) + tl.maximum(v, other_v)
            better, these = value > best, _first_and_change(i)
            above, below = tl.where(better, u - other_u, above), tl.where(better, v - other_v, below)
        elif _options(i, 0) == 1:
            value, these = u + v, _bits(i, 0, 0)
            better = value > best
        else:
            u, upper = _best_of_many(r0, r1, i, 0)
            v, lower = _best_of_many(r2, r3, i, 1)
            value, these = u + v, upper | lower
            better = value > best
        best, bits = tl.maximum(best, value), tl.where(better, these, bits)
    change = bits >> 16
    bits ^= tl.where(above < 0, change & 0xFF, 0)
    return (bits ^ tl.where(below < 0, change & 0xFF00, 0)) & 0xFFFF


@triton.jit
def as_bytes(bits):
    """The lowest four bits as the four bytes of an integer."""
    return (bits & 1) | ((bits & 2) << 7) | ((bits & 4) << 14) | ((bits & 8) << 21)


@triton.jit
def mask_tiles_24(weight_ptr, mask_ptr, rows, cols, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """`DOWN x ACROSS` tiles of 4 x 4; a row of a tile is written as the four bytes of an integer."""
    tile_rows = tl.program_id(0) * DOWN + tl.arange(0, DOWN)[:, None]
    c = tl.program_id(1) * ACROSS * 4 + tl.arange(0, ACROSS * 4)[None, :]
    offs = (tile_rows * 4).to(tl.int64) * cols + c  # row 0 of each tile, [DOWN, ACROSS * 4]
    mask = (tile_rows * 4 < rows) & (c < cols)
    w0 = tl.load(weight_ptr + offs, mask=mask, other=0.0)
    w1 = tl.load(weight_ptr + offs + cols, mask=mask, other=0.0)
    w2 = tl.load(weight_ptr + offs + 2 * cols, mask=mask, other=0.0)
    w3 = tl.load(weight_ptr + offs + 3 * cols, mask=mask, other=0.0)
    r0, r1 = pair_sums(*split_quads(w0, DOWN, ACROSS)), pair_sums(*split_quads(w1, DOWN, ACROSS))
    r2, r3 = pair_sums(*split_quads(w2, DOWN, ACROSS)), pair_sums(*split_quads(w3, DOWN, ACROSS))
    bits = best_tile(r0, r1, r2, r3)  # [DOWN, ACROSS]
    t = tl.program_id(1) * ACROSS + tl.arange(0, ACROSS)[None, :]
    inside = (tile_rows * 4 < rows) & (t * 4 < cols)
    for r in tl.static_range(4):
        tl.store(mask_ptr + (tile_rows * 4 + r).to(tl.int64) * (cols // 4) + t, as_bytes(bits >> (4 * r)), mask=inside)


def nm_mask_2d(weight: Tensor) -> Tensor:
    """bool mask shaped like `weight`; arguments as in `trisparse.sparse_ops.nm_mask_2d`."""
    weight = weight.contiguous()
    rows, cols = weight.shape
    mask = torch.empty((rows, cols), dtype=torch.bool, device=weight.device)
    if weight.numel():
        grid = triton.cdiv(rows // 4, DOWN), triton.cdiv(cols // 4, ACROSS)
        words = mask.view(torch.int32)
        mask_tiles_24[grid](weight, words, rows, cols, DOWN=DOWN, ACROSS=ACROSS, num_warps=warps(THREADS))
    return mask
