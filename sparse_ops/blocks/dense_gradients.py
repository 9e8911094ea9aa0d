"""Gradients of products with packed vectors as dense products: these have tiles for tensor cores, the kernels none.

Both work on the transpose of W: there the rows of a vector that stay together lie side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.sparse_ops.blocks.packed_blocks import PackedBlocks, places
from trisparse.sparse_ops.library import no_autocast

FEW_TOKENS = 64  # up to here by kernels; a step of 4096 tokens on them took an H200 four to eight times a dense one


def is_dense(grad: Tensor, matrix: PackedBlocks) -> bool:
    """Whether the gradients of a product are taken densely: of vectors, for many tokens."""
    return matrix.block[1] == 1 and grad.shape[0] > FEW_TOKENS


def _transposed_places(matrix: PackedBlocks) -> tuple[Tensor, int]:
    """Where `values` lie in `[cols + 1, high]`, the last row taking what fills up, and `high`; nothing waits."""
    high = -(-matrix.rows // matrix.block[0]) * matrix.block[0]
    row, column = places(matrix)
    return (column * high + row).flatten(), high


def input_gradient(grad: Tensor, matrix: PackedBlocks) -> Tensor:
    """`grad @ W` with one dense W in memory; see `spmm_t`."""
    where, high = _transposed_places(matrix)
    dense = matrix.values.new_zeros((matrix.cols + 1) * high).scatter_(0, where, matrix.values.flatten())
    weight_t = dense.view(matrix.cols + 1, high)[: matrix.cols, : matrix.rows]
    with no_autocast(grad.device):  # the result has the dtype of grad
        return grad @ weight_t.t()


def values_gradient(grad: Tensor, x: Tensor, matrix: PackedBlocks) -> Tensor:
    """`grad.T @ x` at the places of `values`, with one dense gradient in memory; see `sddmm`."""
    where, high = _transposed_places(matrix)
    full = grad.new_zeros(matrix.cols + 1, high)
    torch.mm(x.t(), grad, out=full[: matrix.cols, : matrix.rows])
    return full.view(-1)[where].view_as(matrix.values)
