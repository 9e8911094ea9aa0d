"""Packing of 2:4 matrices, W alone or W and its transpose from one read; for the formats see `layouts_24`.

A program takes 16 x 16 tiles of 4 x 4 weights. What is kept of a tile is an integer of 16 bits, column + 4 * row,
chosen in the program or given; everything that is written follows from it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.nm_mask import order
from trisparse.kernels.gpu.nm_mask_2d import best_tile, pair_sums, split_quads
from trisparse.kernels.gpu.quads import as_one_integer, best_two, store_metadata, stored_values
from trisparse.kernels.layouts_24 import packed_size, padded

TILES = 16  # down and across a program
WARPS = 4  # on AMD, where they are wider, 2 would read 16 bytes at once but spill scalar registers


@triton.jit
def _best_rows(v0, v1, v2, v3, MAGNITUDE: tl.constexpr, TILES: tl.constexpr):
    """The best two of each quad, row by row."""
    a0, a1, a2, a3 = split_quads(order(v0, MAGNITUDE), TILES, TILES)
    b0, b1, b2, b3 = split_quads(order(v1, MAGNITUDE), TILES, TILES)
    c0, c1, c2, c3 = split_quads(order(v2, MAGNITUDE), TILES, TILES)
    d0, d1, d2, d3 = split_quads(order(v3, MAGNITUDE), TILES, TILES)
    bits = best_two(a0, a1, a2, a3) | (best_two(b0, b1, b2, b3) << 4)
    return bits | (best_two(c0, c1, c2, c3) << 8) | (best_two(d0, d1, d2, d3) << 12)


@triton.jit
def _row_of_mask(mask, TILES: tl.constexpr):
    m0, m1, m2, m3 = split_quads(mask.to(tl.int32), TILES, TILES)
    return m0 | (m1 << 1) | (m2 << 2) | (m3 << 3)


@triton.jit
def _column(bits):
    """The first column of tiles, as the bits of a quad."""
    return (bits & 1) | ((bits >> 3) & 2) | ((bits >> 6) & 4) | ((bits >> 9) & 8)


@triton.jit
def _store_pair(ptrs, bits, x0, x1, x2, x3):
    first, second = stored_values(bits, x0, x1, x2, x3)
    tl.store(ptrs, as_one_integer(first, second))


@triton.jit
def pack_tiles(
    weight_ptr, chooser_ptr, patterns_ptr, packed_ptr, packed_t_ptr,
    rows, cols, padded_rows, padded_cols,
    SELECT: tl.constexpr, BOTH: tl.constexpr, VALUES_ONLY: tl.constexpr, LAYOUT: tl.constexpr,
    DTYPE: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Pack `TILES x TILES` tiles; values are written as integers of two values.

    Each tile's pattern comes from `chooser_ptr`: weights or scores, `SELECT` saying whether by "magnitude" or
    "scores", for `BOTH` the best of the 90 transposable ones by magnitude; a "mask" of bytes; or "patterns".
    """
    i = tl.program_id(0) * TILES + tl.arange(0, TILES)  # tile rows
    t = tl.program_id(1) * TILES + tl.arange(0, TILES)  # tile columns, quads of W
    c = tl.program_id(1) * TILES * 4 + tl.arange(0, TILES * 4)
    r0 = (i * 4)[:, None]
    offs = r0.to(tl.int64) * cols + c[None, :]  # row 0 of each tile, [TILES, TILES * 4]
    inside = (c < cols)[None, :]
    m0 = (r0 < rows) & inside
    if BOTH:  # whole tiles only
        m1, m2, m3 = m0, m0, m0
    else:
        m1, m2, m3 = (r0 + 1 < rows) & inside, (r0 + 2 < rows) & inside, (r0 + 3 < rows) & inside
    w0 = tl.load(weight_ptr + offs, mask=m0, other=0.0)
    w1 = tl.load(weight_ptr + offs + cols, mask=m1, other=0.0)
    w2 = tl.load(weight_ptr + offs + 2 * cols, mask=m2, other=0.0)
    w3 = tl.load(weight_ptr + offs + 3 * cols, mask=m3, other=0.0)
    tile_offs = i[:, None].to(tl.int64) * (cols // 4) + t[None, :]
    is_tile = (r0 < rows) & (t * 4 < cols)[None, :]
    if SELECT == "patterns":
        bits = tl.load(patterns_ptr + tile_offs, mask=is_tile, other=0).to(tl.int32) & 0xFFFF
    else:
        if SELECT == "magnitude":
            v0, v1, v2, v3 = w0, w1, w2, w3
        else:
            v0 = tl.load(chooser_ptr + offs, mask=m0, other=0)
            v1 = tl.load(chooser_ptr + offs + cols, mask=m1, other=0)
            v2 = tl.load(chooser_ptr + offs + 2 * cols, mask=m2, other=0)
            v3 = tl.load(chooser_ptr + offs + 3 * cols, mask=m3, other=0)
        if SELECT == "mask":
            bits = _row_of_mask(v0, TILES) | (_row_of_mask(v1, TILES) << 4)
            bits |= (_row_of_mask(v2, TILES) << 8) | (_row_of_mask(v3, TILES) << 12)
        else:
            if BOTH:
                s0, s1 = pair_sums(v0, TILES, TILES), pair_sums(v1, TILES, TILES)
                s2, s3 = pair_sums(v2, TILES, TILES), pair_sums(v3, TILES, TILES)
                bits = best_tile(s0, s1, s2, s3)
            else:
                bits = _best_rows(v0, v1, v2, v3, SELECT == "magnitude", TILES)
            left = tl.minimum(tl.maximum(rows - i * 4, 0), 4)[:, None] * 4  # nothing is kept of the padding
            bits = tl.where(is_tile, bits & ((1 << left) - 1), 0)
        tl.store(patterns_ptr + tile_offs, bits.to(tl.int16), mask=is_tile)
    a0, a1, a2, a3 = split_quads(w0.to(DTYPE), TILES, TILES)
    b0, b1, b2, b3 = split_quads(w1.to(DTYPE), TILES, TILES)
    c0, c1, c2, c3 = split_quads(w2.to(DTYPE), TILES, TILES)
    d0, d1, d2, d3 = split_quads(w3.to(DTYPE), TILES, TILES)
    i0, t0 = tl.program_id(0) * TILES, tl.program_id(1) * TILES
    r0, r1, r2, r3 = bits & 0xF, (bits >> 4) & 0xF, (bits >> 8) & 0xF, (bits >> 12) & 0xF
    offs = (i * 4)[:, None].to(tl.int64) * (padded_cols // 4) + t[None, :]
    _store_pair(packed_ptr + offs, r0, a0, a1, a2, a3)
    _store_pair(packed_ptr + offs + padded_cols // 4, r1, b0, b1, b2, b3)
    _store_pair(packed_ptr + offs + 2 * (padded_cols // 4), r2, c0, c1, c2, c3)
    _store_pair(packed_ptr + offs + 3 * (padded_cols // 4), r3, d0, d1, d2, d3)
    if not VALUES_ONLY:
        store_metadata(packed_ptr, r0, r1, r2, r3, i0, t0, padded_rows, padded_cols, LAYOUT, TILES, TILES)
    if BOTH:
        k0, k1, k2, k3 = _column(bits), _column(bits >> 1), _column(bits >> 2), _column(bits >> 3)
        offs = (t * 4)[None, :].to(tl.int64) * (padded_rows // 4) + i[:, None]
        _store_pair(packed_t_ptr + offs, k0, a0, b0, c0, d0)
        _store_pair(packed_t_ptr + offs + padded_rows // 4, k1, a1, b1, c1, d1)
        _store_pair(packed_t_ptr + offs + 2 * (padded_rows // 4), k2, a2, b2, c2, d2)
        _store_pair(packed_t_ptr + offs + 3 * (padded_rows // 4), k3, a3, b3, c3, d3)
        if not VALUES_ONLY:
            store_metadata(
                packed_t_ptr, tl.trans(k0), tl.trans(k1), tl.trans(k2), tl.trans(k3), t0, i0,
                padded_cols, padded_rows, LAYOUT, TILES, TILES,
            )  # fmt: skip


def launch(
    weight: Tensor, chooser: Tensor, patterns: Tensor, packed: Tensor, packed_t: Tensor, select: str, layout: str,
    values_only: bool,
) -> None:  # fmt: skip
    """One launch over all tiles; `values_only` leaves metadata as they are."""
    rows, cols = weight.shape
    high, wide = padded(rows, cols, layout)
    both = packed_t.numel() > 0
    if not patterns.numel():
        return
    pairs = packed.view(torch.int32)
    pack_tiles[high // (4 * TILES), wide // (4 * TILES)](
        weight, chooser, patterns, pairs, packed_t.view(torch.int32) if both else pairs, rows, cols, high, wide,
        SELECT=select, BOTH=both, VALUES_ONLY=values_only, LAYOUT=layout,
        DTYPE={torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[packed.dtype], TILES=TILES,
        num_warps=WARPS,
    )  # fmt: skip


def loadable(weight: Tensor) -> Tensor:
    """In a dtype and an order that the kernel reads."""
    return (weight.float() if weight.dtype == torch.float64 else weight).contiguous()


def pack_24(
    weight: Tensor, chooser: Tensor | None, select: str, transposed: bool, layout: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Packed W, packed transpose and patterns; the last two are empty unless wanted, and unless chosen here.

    Arguments as in `trisparse.sparse_ops.pack_24`.
    """
    weight = loadable(weight)
    rows, cols = weight.shape
    _, size = packed_size(rows, cols, layout, dtype.itemsize)
    packed = torch.empty(size, dtype=dtype, device=weight.device)
    packed_t = torch.empty(size if transposed else 0, dtype=dtype, device=weight.device)
    chooser = weight if chooser is None else chooser.contiguous()
    if select == "patterns":
        launch(weight, weight, chooser, packed, packed_t, select, layout, False)
        return packed, packed_t, chooser.new_empty(0, 0)
    if chooser.dtype == torch.bool:
        chooser = chooser.view(torch.int8)
    patterns = torch.empty(triton.cdiv(rows, 4), cols // 4, dtype=torch.int16, device=weight.device)
    launch(weight, chooser, patterns, packed, packed_t, select, layout, False)
    return packed, packed_t, patterns
