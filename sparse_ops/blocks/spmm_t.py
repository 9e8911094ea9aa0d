"""The gradient of a product's input: multiply with the transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.sparse_ops.blocks.dense_gradients import input_gradient, is_dense
from trisparse.sparse_ops.blocks.packed_blocks import LOWEST, SCHEMA, PackedBlocks, unpack_blocks
from trisparse.sparse_ops.library import define, no_autocast


def spmm_t_reference(grad, *matrix) -> Tensor:
    """Plain torch; see `spmm_t`."""
    with no_autocast(grad.device):  # the result has the dtype of grad
        return grad @ unpack_blocks(PackedBlocks(*matrix))


def _kernel(grad, *rest) -> Tensor:
    from trisparse.kernels.gpu.spmm_t import spmm_t

    matrix = PackedBlocks(*rest)
    if is_dense(grad, matrix):
        return input_gradient(grad, matrix)
    return spmm_t(grad, matrix) if matrix.rows and matrix.block[0] >= LOWEST else spmm_t_reference(grad, *rest)


def spmm_t_on_cpu(grad, *rest) -> Tensor:
    """As `spmm_t` on a CPU, where no index by column is needed."""
    from trisparse.kernels.cpu.spmm_t import spmm_t

    found = spmm_t(grad, PackedBlocks(*rest))
    return spmm_t_reference(grad, *rest) if found is None else found


define(
    f"spmm_t(Tensor grad, {SCHEMA}) -> Tensor",
    spmm_t_reference, _kernel, lambda grad, *matrix: grad.new_empty(grad.shape[0], matrix[8]), spmm_t_on_cpu,
)  # fmt: skip


def spmm_t(grad: Tensor, matrix: PackedBlocks) -> Tensor:
    """`grad @ W`, `[tokens, cols]`, for grad `[tokens, rows]`; on a GPU of W indexed by column, as packed with
    `transposed`.
    """
    return torch.ops.trisparse.spmm_t(grad, *matrix)
