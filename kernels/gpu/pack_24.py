"""Packing of 2:4 matrices, W alone or W and its transpose from one read; for the formats see `layouts_24`.

A program takes 16 x 16 tiles of 4 x 4 weights. What is kept of a tile is an integer of 16 bits, column + 4 * row,
chosen in the program or given; everything that is written follows from it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.nm_mask import inf_bits, order
from trisparse.kernels.gpu.nm_mask_2d import best_tile, pair_sums, split_quads
from trisparse.kernels.gpu.quads import (
    best_two,
    best_two_ranked,
    nibbles_of,
    rank,
    store_metadata,
    stored_pairs,
    transposed_tiles,
)
from trisparse.kernels.layouts_24 import packed_size, padded

DOWN, ACROSS, WARPS = 16, 16, 4  # tiles a program, and its warps: a warp has the 8 x 8 tiles of a word


@triton.jit
def _load_rows(ptr, r0, c, rows, cols, BOTH: tl.constexpr):
    """The four rows of tiles whose first is r0, at the columns c."""
    offs, inside = r0.to(tl.int64) * cols + c[None, :], (c < cols)[None, :]
    m0 = (r0 < rows) & inside
    if BOTH:  # whole tiles only
        m1, m2, m3 = m0, m0, m0
    else:
        m1, m2, m3 = (r0 + 1 < rows) & inside, (r0 + 2 < rows) & inside, (r0 + 3 < rows) & inside
    w0 = tl.load(ptr + offs, mask=m0, other=0)
    w1 = tl.load(ptr + offs + cols, mask=m1, other=0)
    w2 = tl.load(ptr + offs + 2 * cols, mask=m2, other=0)
    w3 = tl.load(ptr + offs + 3 * cols, mask=m3, other=0)
    return w0, w1, w2, w3


@triton.jit
def _split_pairs(pairs, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """The four places of quads from integers of two values; what is above 16 bits is not cleared."""
    x0, x2 = tl.split(tl.reshape(pairs, (DOWN, ACROSS, 2)))
    return x0, x0 >> 16, x2, x2 >> 16


@triton.jit
def _split_values(values, DTYPE: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """The same from values of any dtype."""
    x0, x1, x2, x3 = split_quads(values.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32), DOWN, ACROSS)
    return x0, x1, x2, x3


@triton.jit
def _sums(x0, x1, x2, x3, DTYPE: tl.constexpr):
    """`pair_sums` of values as 16 bits."""
    x0, x1 = x0.to(tl.int16).to(DTYPE, bitcast=True), x1.to(tl.int16).to(DTYPE, bitcast=True)
    return pair_sums(x0, x1, x2.to(tl.int16).to(DTYPE, bitcast=True), x3.to(tl.int16).to(DTYPE, bitcast=True))


@triton.jit
def _ranked(x, PLACE: tl.constexpr, DTYPE: tl.constexpr):
    """Keys of magnitudes, which differ; all NaN are alike, above inf."""
    size = ((x << 16) & 0x7FFF0000) | rank(PLACE)
    return tl.minimum(size, ((inf_bits(DTYPE) + 1) << 16) | rank(PLACE))


@triton.jit
def _best_of_16_bits(x0, x1, x2, x3, DTYPE: tl.constexpr):
    k0, k1 = _ranked(x0, 0, DTYPE), _ranked(x1, 1, DTYPE)
    return best_two_ranked(k0, k1, _ranked(x2, 2, DTYPE), _ranked(x3, 3, DTYPE))


@triton.jit
def _best_of_row(v, MAGNITUDE: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    k0, k1, k2, k3 = split_quads(order(v, MAGNITUDE), DOWN, ACROSS)
    return best_two(k0, k1, k2, k3)


@triton.jit
def _row_of_mask(mask, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    m0, m1, m2, m3 = split_quads(mask.to(tl.int32), DOWN, ACROSS)
    return m0 | (m1 << 1) | (m2 << 2) | (m3 << 3)


@triton.jit
def _as_tiles(b0, b1, b2, b3):
    return b0 | (b1 << 4) | (b2 << 8) | (b3 << 12)


@triton.jit
def pack_tiles(
    weight_ptr, chooser_ptr, patterns_ptr, packed_ptr, packed_t_ptr,
    rows, cols, padded_rows, padded_cols,
    SELECT: tl.constexpr, BOTH: tl.constexpr, VALUES_ONLY: tl.constexpr, LAYOUT: tl.constexpr,
    DTYPE: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Pack `DOWN x ACROSS` tiles; values are written, and read if they are stored as they are, as integers of two.

    Each tile's pattern comes from `chooser_ptr`: weights or scores, `SELECT` saying whether by "magnitude" or
    "scores", for `BOTH` the best of the 90 transposable ones by magnitude; a "mask" of bytes; or "patterns".
    """
    PAIRED: tl.constexpr = weight_ptr.dtype.element_ty == tl.int32
    FULL: tl.constexpr = SELECT == "magnitude" or SELECT == "scores"  # two of every quad are kept
    i0, t0 = tl.program_id(0) * DOWN, tl.program_id(1) * ACROSS
    i = i0 + tl.arange(0, DOWN)  # tile rows
    t = t0 + tl.arange(0, ACROSS)  # tile columns, quads of W
    c = t0 * 4 + tl.arange(0, ACROSS * 4)
    r0 = (i * 4)[:, None]
    if PAIRED:
        pairs = t0 * 2 + tl.arange(0, ACROSS * 2)
        w0, w1, w2, w3 = _load_rows(weight_ptr, r0, pairs, rows, cols // 2, BOTH)
        a0, a1, a2, a3 = _split_pairs(w0, DOWN, ACROSS)
        b0, b1, b2, b3 = _split_pairs(w1, DOWN, ACROSS)
        c0, c1, c2, c3 = _split_pairs(w2, DOWN, ACROSS)
        d0, d1, d2, d3 = _split_pairs(w3, DOWN, ACROSS)
    else:
        v0, v1, v2, v3 = _load_rows(weight_ptr, r0, c, rows, cols, BOTH)
        a0, a1, a2, a3 = _split_values(v0, DTYPE, DOWN, ACROSS)
        b0, b1, b2, b3 = _split_values(v1, DTYPE, DOWN, ACROSS)
        c0, c1, c2, c3 = _split_values(v2, DTYPE, DOWN, ACROSS)
        d0, d1, d2, d3 = _split_values(v3, DTYPE, DOWN, ACROSS)
    tile_offs = i[:, None].to(tl.int64) * (cols // 4) + t[None, :]
    is_tile = (r0 < rows) & (t * 4 < cols)[None, :]
    if SELECT == "patterns":
        bits = tl.load(patterns_ptr + tile_offs, mask=is_tile, other=0).to(tl.int32) & 0xFFFF
    else:
        if SELECT != "magnitude":
            v0, v1, v2, v3 = _load_rows(chooser_ptr, r0, c, rows, cols, BOTH)
        if SELECT == "mask":
            k0, k1 = _row_of_mask(v0, DOWN, ACROSS), _row_of_mask(v1, DOWN, ACROSS)
            bits = _as_tiles(k0, k1, _row_of_mask(v2, DOWN, ACROSS), _row_of_mask(v3, DOWN, ACROSS))
        elif BOTH:
            if PAIRED and SELECT == "magnitude":
                s0, s1 = _sums(a0, a1, a2, a3, DTYPE), _sums(b0, b1, b2, b3, DTYPE)
                s2, s3 = _sums(c0, c1, c2, c3, DTYPE), _sums(d0, d1, d2, d3, DTYPE)
            else:
                s0, s1 = pair_sums(*split_quads(v0, DOWN, ACROSS)), pair_sums(*split_quads(v1, DOWN, ACROSS))
                s2, s3 = pair_sums(*split_quads(v2, DOWN, ACROSS)), pair_sums(*split_quads(v3, DOWN, ACROSS))
            bits = best_tile(s0, s1, s2, s3)
        elif PAIRED and SELECT == "magnitude":
            k0, k1 = _best_of_16_bits(a0, a1, a2, a3, DTYPE), _best_of_16_bits(b0, b1, b2, b3, DTYPE)
            k2, k3 = _best_of_16_bits(c0, c1, c2, c3, DTYPE), _best_of_16_bits(d0, d1, d2, d3, DTYPE)
            bits = _as_tiles(k0, k1, k2, k3)
        else:
            IS_SIZE: tl.constexpr = SELECT == "magnitude"
            k0, k1 = _best_of_row(v0, IS_SIZE, DOWN, ACROSS), _best_of_row(v1, IS_SIZE, DOWN, ACROSS)
            bits = _as_tiles(k0, k1, _best_of_row(v2, IS_SIZE, DOWN, ACROSS), _best_of_row(v3, IS_SIZE, DOWN, ACROSS))
        if FULL:  # nothing is kept of the padding
            left = tl.minimum(tl.maximum(rows - i * 4, 0), 4)[:, None] * 4
            bits = tl.where(is_tile, bits & ((1 << left) - 1), 0)
        tl.store(patterns_ptr + tile_offs, bits.to(tl.int16), mask=is_tile)
    p0, p1 = stored_pairs(bits, 0, 1, a0, a1, a2, a3, FULL), stored_pairs(bits, 4, 1, b0, b1, b2, b3, FULL)
    p2, p3 = stored_pairs(bits, 8, 1, c0, c1, c2, c3, FULL), stored_pairs(bits, 12, 1, d0, d1, d2, d3, FULL)
    ptrs = packed_ptr + ((i * 4)[:, None].to(tl.int64) * (padded_cols // 4) + t[None, :])
    tl.store(ptrs, p0)
    tl.store(ptrs + padded_cols // 4, p1)
    tl.store(ptrs + 2 * (padded_cols // 4), p2)
    tl.store(ptrs + 3 * (padded_cols // 4), p3)
    if not VALUES_ONLY:
        nibbles = nibbles_of(bits, LAYOUT)
        store_metadata(packed_ptr, nibbles, i0, t0, padded_rows, padded_cols, LAYOUT, DOWN, ACROSS)
    if BOTH:
        q0, q1 = stored_pairs(bits, 0, 4, a0, b0, c0, d0, FULL), stored_pairs(bits, 1, 4, a1, b1, c1, d1, FULL)
        q2, q3 = stored_pairs(bits, 2, 4, a2, b2, c2, d2, FULL), stored_pairs(bits, 3, 4, a3, b3, c3, d3, FULL)
        four = tl.reshape(tl.join(tl.join(q0, q2), tl.join(q1, q3)), (DOWN, ACROSS, 4))  # exchanged at once
        row = t0 * 4 + (tl.arange(0, ACROSS) * 4)[:, None] + tl.arange(0, 4)[None, :]
        tl.store(packed_t_ptr + (row[None, :, :].to(tl.int64) * (padded_rows // 4) + i[:, None, None]), four)
        if not VALUES_ONLY:
            nibbles = tl.trans(nibbles_of(transposed_tiles(bits), LAYOUT))
            store_metadata(packed_t_ptr, nibbles, t0, i0, padded_cols, padded_rows, LAYOUT, ACROSS, DOWN)


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
    weight = weight.view(torch.int32) if weight.dtype == packed.dtype else weight
    pack_tiles[high // (4 * DOWN), wide // (4 * ACROSS)](
        weight, chooser, patterns, pairs, packed_t.view(torch.int32) if both else pairs, rows, cols, high, wide,
        SELECT=select, BOTH=both, VALUES_ONLY=values_only, LAYOUT=layout,
        DTYPE={torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[packed.dtype], DOWN=DOWN, ACROSS=ACROSS,
        num_warps=WARPS,
    )  # fmt: skip


def loadable(weight: Tensor) -> Tensor:
    """In a dtype and an order that the kernel reads, from where two values of 16 bits can be read at once."""
    weight = (weight.float() if weight.dtype == torch.float64 else weight).contiguous()
    return weight.clone() if weight.data_ptr() % 4 or weight.storage_offset() % 2 else weight


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
