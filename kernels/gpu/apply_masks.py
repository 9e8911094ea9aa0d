"""Write +0.0 where a unit mask prunes: W <- W where kept, else 0, in place, on the weights' bits."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import (
    line_offsets,
    open_line,
    open_tile,
    tall_offsets,
    tile_mask,
    tile_offsets,
    unit_offsets,
    warps,
)
from trisparse.kernels.plan import Launch, launches, plan_units
from trisparse.kernels.tables import LINES, LINES_T, TILES, TILES_T

_BITS = {2: tl.int16, 4: tl.int32, 8: tl.int64}
_THREADS = 256


@triton.jit
def mask_tiles(
    pointers, shapes, chunks,
    BITS: tl.constexpr, TRANSPOSED: tl.constexpr,
    N: tl.constexpr, M: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """A tile of `DOWN x ACROSS` units of N x M weights: read, select, write."""
    entry, _layer, down, across, cols, stride, r0, c0 = open_tile(shapes, chunks, M)
    addresses = pointers + entry * 2
    weight = tl.multiple_of(tl.load(addresses).to(tl.pointer_type(BITS)), 16)
    mask = tl.multiple_of(tl.load(addresses + 1).to(tl.pointer_type(tl.int8)), 16)
    units = unit_offsets(down, across, r0, c0, TRANSPOSED, DOWN, ACROSS)
    keep = tl.load(mask + units, mask=tile_mask(down, across, r0, c0, 1, DOWN, ACROSS), other=0)  # [DOWN, ACROSS]
    if M > 1:
        keep = tl.reshape(tl.broadcast_to(keep[:, :, None], (DOWN, ACROSS, M)), (DOWN, ACROSS * M))
    inside = tile_mask(down, cols, r0, c0, M, DOWN, ACROSS)
    if N <= 8:
        for i in tl.static_range(N):
            offs = tile_offsets(stride, r0, c0, i, N, M, DOWN, ACROSS)
            tl.store(weight + offs, tl.where(keep != 0, tl.load(weight + offs, mask=inside), 0), mask=inside)
    else:
        offs = tall_offsets(stride, r0, c0, N, M, ACROSS)
        tl.store(weight + offs, tl.where(keep != 0, tl.load(weight + offs, mask=inside), 0), mask=inside)


@triton.jit
def mask_lines(
    pointers, shapes, chunks,
    BITS: tl.constexpr, IS_LINES: tl.constexpr, IS_LINES_T: tl.constexpr, UNITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """`UNITS` whole units: zeros are written, and nothing is read."""
    entry, _layer, shape, units, size, u0 = open_line(shapes, chunks, IS_LINES, IS_LINES_T, UNITS)
    addresses = pointers + entry * 2
    weight = tl.load(addresses).to(tl.pointer_type(BITS))
    mask = tl.load(addresses + 1).to(tl.pointer_type(tl.int8))
    if IS_LINES or IS_LINES_T:
        weight = tl.multiple_of(weight, 16)
    u = u0 + tl.arange(0, UNITS)
    keep = tl.load(mask + u.to(tl.int64), mask=u < units, other=1)  # [UNITS]
    for start in range(0, size, WIDTH):
        e = start + tl.arange(0, WIDTH)
        offs = line_offsets(shape, u, e, IS_LINES, IS_LINES_T)
        gone = (keep == 0)[:, None] & (e < size)[None, :]
        tl.store(weight + offs, tl.zeros((UNITS, WIDTH), BITS), mask=gone)


def apply_masks(
    weights: Sequence[Tensor],
    masks: Sequence[Tensor],
    blocks: Sequence[tuple[int, int]],
    plan: Sequence[Tensor] = (),
) -> None:
    """One launch for all layers of one layout and dtype.

    Arguments as in `trisparse.sparse_ops.apply_masks`, but for `plan`: of `plan_units` over weights, then masks.
    """
    for launch in launches(plan or plan_units(weights, [masks], blocks)):
        _launch(launch)


def _launch(launch: Launch) -> None:
    grid = (len(launch.chunks),)
    arguments = launch.pointers, launch.shapes, launch.chunks
    bits = _BITS[launch.dtypes[0].itemsize]
    layout, (first, second) = launch.layout, launch.tile
    if layout in (TILES, TILES_T):
        n, m = launch.block
        mask_tiles[grid](
            *arguments,
            BITS=bits,
            TRANSPOSED=layout == TILES_T,
            N=n,
            M=m,
            DOWN=first,
            ACROSS=second,
            num_warps=warps(_THREADS),
        )
    else:
        kind = {"IS_LINES": layout == LINES, "IS_LINES_T": layout == LINES_T}
        mask_lines[grid](*arguments, BITS=bits, **kind, UNITS=first, WIDTH=second, num_warps=warps(_THREADS))
