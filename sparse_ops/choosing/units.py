"""Geometry of units: how an `n x m` block grid lies over a unit view."""

import math
from collections.abc import Sequence

from torch import Tensor

from trisparse.sparse_ops.checks import check_dtype

Block = tuple[int, int]


def flat(blocks: Sequence[Block]) -> list[int]:
    """Blocks as one list of integers, for an operator's schema."""
    return [size for block in blocks for size in block]


def pairs(sizes: Sequence[int]) -> list[Block]:
    """What `flat` flattened."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def matrix_shape(view: Tensor) -> Block:
    """Rows and columns of the matrix that a unit view is read as."""
    return view.shape[0], math.prod(view.shape[1:])


def grid_shape(view: Tensor, block: Block) -> Block:
    """Shape `[rows / n, cols / m]` of what belongs to the units of a view."""
    rows, cols = matrix_shape(view)
    return rows // block[0], cols // block[1]


def check_view(name: str, view: Tensor, block: Block) -> None:
    """Raise ValueError unless `view` is 2-D or 3-D and the block divides it, TypeError for its dtype."""
    check_dtype(name, view)
    n, m = block
    rows, cols = matrix_shape(view)
    if view.dim() not in (2, 3) or n < 1 or m < 1 or rows % n or cols % m:
        raise ValueError(
            f"{name}: want [rows, cols] or [rows, taps, cols] that {n}x{m} divides, got {list(view.shape)}"
        )


def check_units(name: str, tensor: Tensor, view: Tensor, block: Block) -> None:
    """Raise ValueError unless `tensor` has one value for each unit of `view`."""
    want = grid_shape(view, block)
    if tuple(tensor.shape) != want:
        raise ValueError(f"{name}: want {list(want)}, one value a unit, got {list(tensor.shape)}")


def expand_units(values: Tensor, block: Block) -> Tensor:
    """Repeat one value a unit over the unit's weights: `[R/n, C/m]` to `[R, C]`."""
    n, m = block
    rows, cols = values.shape
    return values[:, None, :, None].expand(rows, n, cols, m).reshape(rows * n, cols * m).contiguous()
