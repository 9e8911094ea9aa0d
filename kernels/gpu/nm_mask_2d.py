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
def _bits(number: int, lower: int, option: int) -> int:
    """A half as 8 bits, column + 4 * row, in the place where its rows lie in the tile."""
    columns = [column + 4 * row for row in range(2) for column in PAIRS[CLASSES[number][lower][option][row]]]
    return sum(1 << bit for bit in columns) << (8 * lower)


@triton.jit
def split_quads(x, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """The four places of every quad: `[DOWN, ACROSS * 4]` to four `[DOWN, ACROSS]`."""
    even, odd = tl.split(tl.reshape(x, (DOWN, ACROSS, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def pair_sums(w, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Sums of the magnitudes of each pair in one row of every tile; `w` is `[DOWN, ACROSS * 4]`."""
    size = tl.abs(w.to(tl.float32))
    size = tl.where(size <= _LIMIT, size, _LIMIT)  # NaN too counts as the largest
    x0, x1, x2, x3 = split_quads(size, DOWN, ACROSS)
    return x0 + x1, x0 + x2, x0 + x3, x1 + x2, x1 + x3, x2 + x3


@triton.jit
def _better(best, bits, other, other_bits):
    better = other > best
    return tl.where(better, other, best), tl.where(better, other_bits, bits)


@triton.jit
def _half(first, second, CLASS: tl.constexpr, LOWER: tl.constexpr):
    """The best of a class's halves, and its bits."""
    best = first[_pair(CLASS, LOWER, 0, 0)] + second[_pair(CLASS, LOWER, 0, 1)]
    bits = tl.full(best.shape, _bits(CLASS, LOWER, 0), tl.int32)
    for i in tl.static_range(1, _options(CLASS, LOWER)):
        value = first[_pair(CLASS, LOWER, i, 0)] + second[_pair(CLASS, LOWER, i, 1)]
        best, bits = _better(best, bits, value, _bits(CLASS, LOWER, i))
    return best, bits


@triton.jit
def best_tile(r0, r1, r2, r3):
    """int32 bits column + 4 * row of the best pattern, from each row's sums of pairs."""
    best, upper = _half(r0, r1, 0, 0)
    below, lower = _half(r2, r3, 0, 1)
    best += below
    bits = upper | lower
    for i in tl.static_range(1, _count()):
        above, upper = _half(r0, r1, i, 0)
        below, lower = _half(r2, r3, i, 1)
        best, bits = _better(best, bits, above + below, upper | lower)
    return bits


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
    r0 = pair_sums(tl.load(weight_ptr + offs, mask=mask, other=0.0), DOWN, ACROSS)
    r1 = pair_sums(tl.load(weight_ptr + offs + cols, mask=mask, other=0.0), DOWN, ACROSS)
    r2 = pair_sums(tl.load(weight_ptr + offs + 2 * cols, mask=mask, other=0.0), DOWN, ACROSS)
    r3 = pair_sums(tl.load(weight_ptr + offs + 3 * cols, mask=mask, other=0.0), DOWN, ACROSS)
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
