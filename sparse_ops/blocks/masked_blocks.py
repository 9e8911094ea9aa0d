"""A dense weight of which a mask keeps some column vectors: where these are, their values, and the way back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from trisparse.sparse_ops.blocks.packed_blocks import HEIGHTS, PackedBlocks, places, unpack_blocks


class MaskedBlocks(NamedTuple):
    """Where the vectors are that a mask keeps.

    Attributes:
        matrix: `[rows, cols]` in vectors N x 1 without values, groups in the order of the rows.
        transposed: of single weights (N = 1) the transpose, `[cols, rows]`; else None.
        slots_t: int64, the slot that each slot of `transposed` has in `matrix`; else None.
    """

    matrix: PackedBlocks
    transposed: PackedBlocks | None
    slots_t: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight, `(rows, cols)`."""
        return self.matrix.rows, self.matrix.cols

    @property
    def density(self) -> float:
        """Share of the weights that is kept."""
        n, _ = self.matrix.block
        return len(self.matrix.columns) * n / max(self.matrix.rows * self.matrix.cols, 1)


def height_of(block: tuple[int, int]) -> int:
    """Rows of the highest vectors that units of a block can be cut into."""
    return max(height for height in HEIGHTS if block[0] % height == 0)


@torch.no_grad()
def masked_blocks(mask: Tensor, block: tuple[int, int], dtype: torch.dtype) -> MaskedBlocks:
    """Find what a mask of units keeps.

    Args:
        mask: bool, one for each unit of `block`, True = kept.
        block: rows and columns of a unit; it is cut into the highest vectors that there are.
        dtype: of the weight.
    """
    n = height_of(block)
    mask = mask.repeat_interleave(block[0] // n, 0).repeat_interleave(block[1], 1)
    matrix = _blocks(mask, n, dtype)
    if n > 1:
        return MaskedBlocks(matrix, None, None)
    transposed = _blocks(mask.t(), 1, dtype)
    return MaskedBlocks(matrix, transposed, matrix.columns.argsort(stable=True))


def _blocks(mask: Tensor, n: int, dtype: torch.dtype) -> PackedBlocks:
    groups, cols = mask.shape
    _, column = mask.nonzero(as_tuple=True)
    lengths = mask.sum(1)
    none = torch.empty(0, dtype=torch.int32, device="cpu")
    return PackedBlocks(
        torch.empty(0, n, 1, dtype=dtype, device="cpu"),
        column.to(torch.int16 if cols < 1 << 15 else torch.int32),
        pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
        torch.arange(groups, dtype=torch.int32, device="cpu"),
        none, none, none, groups * n, cols, n, int(lengths.max()) if groups else 0,
    )  # fmt: skip


def gather_values(weight: Tensor, matrix: PackedBlocks) -> PackedBlocks:
    """The matrix with the values of a dense weight `[rows, cols]`."""
    from trisparse.kernels.cpu.gather import gather_values

    values = gather_values(weight, matrix)
    if values is None:
        full = matrix._replace(values=weight.new_empty(len(matrix.columns), *matrix.block))
        values = weight[places(full)]
    return matrix._replace(values=values)


def scatter_values(values: Tensor, matrix: PackedBlocks) -> Tensor:
    """Dense `[rows, cols]` with values `[slots, n, 1]` where the matrix has them, +0 elsewhere."""
    from trisparse.kernels.cpu.gather import scatter_values

    dense = scatter_values(values, matrix)
    return unpack_blocks(matrix._replace(values=values)) if dense is None else dense
