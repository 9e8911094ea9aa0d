"""The gradient of a packed weight: a product of dense matrices, taken only where values are stored."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.sparse_ops.blocks.dense_gradients import is_dense, values_gradient
from trisparse.sparse_ops.blocks.packed_blocks import LOWEST, SCHEMA, PackedBlocks, places
from trisparse.sparse_ops.library import define, no_autocast


def sddmm_reference(grad, x, *matrix) -> Tensor:
    """Plain torch; see `sddmm`."""
    packed = PackedBlocks(*matrix)
    row, column = places(packed)
    inside = (row < packed.rows) & (column < packed.cols)
    with no_autocast(grad.device):  # the result has the dtype of grad
        full = grad.t() @ x
    return full[row.clamp(max=packed.rows - 1), column.clamp(max=packed.cols - 1)].where(inside, 0)


def _kernel(grad, x, *matrix) -> Tensor:
    from trisparse.kernels.gpu.sddmm import sddmm

    packed = PackedBlocks(*matrix)
    if is_dense(grad, packed):
        return values_gradient(grad, x, packed)
    return sddmm(grad, x, packed) if packed.block[0] >= LOWEST else sddmm_reference(grad, x, *matrix)


def _on_cpu(grad, x, *rest) -> Tensor:
    from trisparse.kernels.cpu.sddmm import sddmm

    found = sddmm(grad, x, PackedBlocks(*rest))
    return sddmm_reference(grad, x, *rest) if found is None else found


define(
    f"sddmm(Tensor grad, Tensor x, {SCHEMA}) -> Tensor",
    sddmm_reference, _kernel, lambda grad, x, values, *matrix: values.new_empty(values.shape), _on_cpu,
)  # fmt: skip


def sddmm(grad: Tensor, x: Tensor, matrix: PackedBlocks) -> Tensor:
    """`grad.T @ x` at the places of `matrix.values`, in their shape; zero where a slot only fills up.

    grad is `[tokens, rows]`, x `[tokens, cols]`.
    """
    return torch.ops.trisparse.sddmm(grad, x, *matrix)
