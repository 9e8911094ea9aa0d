"""What the kernels share: how programs find the weights of their units; see `tables` for layouts and fields.

Divisibility must be stated where a value is loaded: a hint on an argument of a device function is lost.
"""

import torch
import triton
import triton.language as tl

from trisparse.kernels import tables

SHAPE_FIELDS = tl.constexpr(tables.SHAPE_FIELDS)
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float64: tl.float64}


def warps(threads: int) -> int:
    """Warps of a program: 32 threads each, on AMD 64."""
    return threads // (64 if torch.version.hip else 32)


@triton.jit
def open_tile(shapes, chunks, M: tl.constexpr):
    """This program's entry and layer, the layer's units down and across, columns and row stride, and its first unit."""
    item = chunks + tl.program_id(0).to(tl.int64) * 3
    entry, r0, c0 = tl.load(item), tl.load(item + 1), tl.multiple_of(tl.load(item + 2), 8)
    shape = shapes + entry * SHAPE_FIELDS
    down, across, layer = tl.load(shape), tl.load(shape + 1), tl.load(shape + 8)
    if M <= 4:
        across = tl.multiple_of(across, 16)
    cols = tl.multiple_of(across * M, 16) if M > 4 else across * M
    return entry, layer, down, across, cols, tl.multiple_of(tl.load(shape + 2), 16), r0, c0


@triton.jit
def open_line(shapes, chunks, LINES: tl.constexpr, LINES_T: tl.constexpr, UNITS: tl.constexpr):
    """This program's entry and layer, the layer's fields, units and weights a unit, and its first unit."""
    item = chunks + tl.program_id(0).to(tl.int64) * 3
    entry, u0 = tl.load(item), tl.multiple_of(tl.load(item + 1), UNITS)
    shape = shapes + entry * SHAPE_FIELDS
    units = tl.load(shape) * tl.load(shape + 1)
    size = (tl.load(shape + 3) * tl.load(shape + 4)).to(tl.int32)
    if LINES:
        size = tl.multiple_of(size, 16)
    if LINES_T:
        units = tl.multiple_of(units, 16)
    return entry, tl.load(shape + 8), shape, units, size, u0


@triton.jit
def tile_offsets(stride, r0, c0, i, N: tl.constexpr, M: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Offsets of row i of every unit in a tile of units, `[DOWN, ACROSS * M]`."""
    rows = (r0 + tl.arange(0, DOWN)) * N + i
    cols = c0 * M + tl.arange(0, ACROSS * M)
    return rows[:, None].to(tl.int64) * stride + cols[None, :]


@triton.jit
def tall_offsets(stride, r0, c0, N: tl.constexpr, M: tl.constexpr, ACROSS: tl.constexpr):
    """Offsets of all rows of one row of units, `[N, ACROSS * M]`."""
    rows = r0 * N + tl.arange(0, N)
    cols = c0 * M + tl.arange(0, ACROSS * M)
    return rows[:, None].to(tl.int64) * stride + cols[None, :]


@triton.jit
def tile_mask(down, cols, r0, c0, M: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Which places of a tile of units lie in a layer `cols` wide, `[DOWN, ACROSS * M]`; for M = 1, which units."""
    r = r0 + tl.arange(0, DOWN)
    c = c0 * M + tl.arange(0, ACROSS * M)
    return (r < down)[:, None] & (c < cols)[None, :]


@triton.jit
def unit_offsets(down, across, r0, c0, TRANSPOSED: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Where the values of a tile of units are stored, `[DOWN, ACROSS]`; always row-major in the unit view."""
    rows = (r0 + tl.arange(0, DOWN)).to(tl.int64)
    cols = (c0 + tl.arange(0, ACROSS)).to(tl.int64)
    if TRANSPOSED:
        return cols[None, :] * down + rows[:, None]
    return rows[:, None] * across + cols[None, :]


@triton.jit
def line_offsets(shape, units, places, LINES: tl.constexpr, LINES_T: tl.constexpr):
    """Offsets of the weights at `places` of `units`, `[units, places]`; `shape` points at the layer's fields."""
    u = units.to(tl.int64)[:, None]
    e = places.to(tl.int64)[None, :]
    if LINES:
        return u * tl.multiple_of(tl.load(shape + 2), 16) + e
    if LINES_T:
        return u + e * tl.multiple_of(tl.load(shape + 6), 16)
    across, s_row, n, m = tl.load(shape + 1), tl.load(shape + 2), tl.load(shape + 3), tl.load(shape + 4)
    s_tap, s_col, cols = tl.load(shape + 5), tl.load(shape + 6), tl.load(shape + 7)
    row = u // across * n + e // m
    col = u % across * m + e % m
    return row * s_row + col // cols * s_tap + col % cols * s_col
