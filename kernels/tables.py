"""Device tables of a multi-tensor launch: addresses, shapes and work items of every layer.

One launch covers all layers of one layout and dtype. A program reads its work item `(entry, first, second)`
from `chunks`, the layer's addresses from row `entry` of `pointers` and its geometry from row `entry` of
`shapes`. Shapes and chunks depend on geometry alone; addresses change when a storage moves.

A *unit view* is `[rows, cols]` or `[rows, taps, cols]` with any strides. Its layout is

* `TILES`: columns contiguous and aligned; programs walk tiles of small units,
* `TILES_T`: rows contiguous instead: the same walk over the transposed view with the transposed block,
* `LINES`: units are whole rows, contiguous and aligned; `LINES_T`: whole rows of a view whose rows are
  contiguous, that is columns in memory,
* `STRIDED`: everything else, one address computed for each weight.

Worked example, a 4x1 unit view `[8, 32]`, contiguous: layout TILES, `2 x 32` units and
`shape = (2, 32, 32, 4, 1, 0, 1, 32, 0)`: unit rows, unit columns, row stride, n, m, tap stride, column
stride, columns a tap, layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TILES, TILES_T, LINES, LINES_T, STRIDED = range(5)
SHAPE_FIELDS = 9
ALIGN = 16  # bytes of the widest access, and elements that strides and unit rows are multiples of
_MAX_SHORT, _MAX_TALL, _MAX_M = 8, 128, 32  # a tall block of 8-byte weights is at most a quarter as tall
_TILE_WEIGHTS, _TILE_COLS = 8192, 256
_LINE_WEIGHTS = 2048


class Geometry(NamedTuple):
    """How a layer's units lie in memory; the module's docstring names the fields of `shape`.

    `tile` is what one program takes: units down and across for tiles, units and weights at a time for lines.
    """

    layout: int
    block: tuple[int, int]
    tile: tuple[int, int]
    shape: tuple[int, ...]


def geometry(view: Tensor, block: tuple[int, int], layer: int, aligned: bool = True) -> Geometry:
    """Classify a unit view; `aligned` says whether all that is read beside it starts at 16 bytes."""
    n, m = block
    rows, taps, cols = view.shape if view.dim() == 3 else (view.shape[0], 1, view.shape[1])
    s_row, s_tap, s_col = view.stride() if view.dim() == 3 else (view.stride(0), 0, view.stride(1))
    if cols == 1:
        taps, cols, s_tap, s_col = 1, taps, 0, s_tap or 1
    elif taps == 1 or s_tap == cols * s_col:
        taps, cols, s_tap = 1, taps * cols, 0
    down, across = rows // n, taps * cols // m
    shape = down, across, s_row, n, m, s_tap, s_col, cols, layer
    aligned = aligned and taps == 1 and view.data_ptr() % ALIGN == 0
    if aligned and s_col == 1 and s_row % ALIGN == 0:
        if across == n == 1 and m > _MAX_M and m % ALIGN == 0:
            return Geometry(LINES, (0, 0), (8, _LINE_WEIGHTS // 8), shape)
        if _tiles(n, m, across, view.element_size()):
            return Geometry(TILES, (n, m), _tile(n, m), shape)
    if aligned and s_row == 1 and s_col % ALIGN == 0:
        if across == n == 1 and m > _MAX_M and down % ALIGN == 0:
            return Geometry(LINES_T, (0, 0), (_LINE_WEIGHTS // ALIGN, ALIGN), shape)
        if _tiles(m, n, down, view.element_size()):
            return Geometry(TILES_T, (m, n), _tile(m, n), (across, down, s_col, m, n, 0, 1, rows, layer))
    width = min(1 << max(n * m - 1, 0).bit_length(), 256)
    return Geometry(STRIDED, (0, 0), (_LINE_WEIGHTS // width, width), shape)


def _tiles(n: int, m: int, across: int, itemsize: int) -> bool:
    """Whether n x m blocks of a row-major matrix, `across` of them in a row, can be walked in tiles."""
    height = n <= _MAX_SHORT or (n <= (_MAX_TALL if itemsize < 8 else _MAX_TALL // 4) and n & (n - 1) == 0)
    width = m <= _MAX_M and m & (m - 1) == 0 and across * m % ALIGN == 0
    # where units are nearly as many as weights, their rows too must start aligned
    return height and width and (m > 4 or across % ALIGN == 0)


def _tile(n: int, m: int) -> tuple[int, int]:
    down = max(_TILE_WEIGHTS // (_TILE_COLS * n), 8) if n <= _MAX_SHORT else 1  # 8: each thread gets 16 bytes
    return 1 << (down.bit_length() - 1), _TILE_COLS // m


def chunk_units(entries: Sequence[Geometry]) -> list[tuple[int, int, int]]:
    """Work items (entry, first unit row, first unit column), for lines (entry, first unit, 0); largest layers first."""
    items = []
    for entry in sorted(range(len(entries)), key=lambda i: -math.prod(entries[i].shape[:2])):
        layout, _, tile, (down, across, *_) = entries[entry]
        if layout in (TILES, TILES_T):
            items += [(entry, r, c) for r in range(0, down, tile[0]) for c in range(0, across, tile[1])]
        else:
            items += [(entry, u, 0) for u in range(0, down * across, tile[0])]
    return items


def chunk_flat(lengths: Sequence[int], size: int) -> list[tuple[int, int, int]]:
    """Work items (entry, number of this chunk of `size` in the entry, index of the entry's first item)."""
    items: list[tuple[int, int, int]] = []
    for entry, length in enumerate(lengths):
        first = len(items)
        items += [(entry, chunk, first) for chunk in range(-(-length // size))]
    return items


def upload(rows: Sequence | np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A table on the device, without waiting for the copy."""
    table = torch.as_tensor(rows, dtype=dtype, device="cpu")
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)
