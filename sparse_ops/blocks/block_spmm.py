"""Multiply with a matrix of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.sparse_ops.blocks.packed_blocks import PackedBlocks
from trisparse.sparse_ops.blocks.spmm import define_product, multiply


def _kernel(x, matrix, bias, activation) -> Tensor:
    from trisparse.kernels.gpu.block_spmm import block_spmm

    return block_spmm(x, matrix, bias, activation)


define_product("block_spmm", _kernel)


def block_spmm(x: Tensor, matrix: PackedBlocks, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`activation(x @ W.T + bias)` with W packed in blocks of sides 16 to 128 by `pack_blocks`.

    Each block that is stored is a dense product on tensor cores; the others cost nothing. Arguments, result, errors
    and gradients are those of `vector_spmm`, for blocks (N, M). The format is that of `torch.sparse_bsr`.
    """
    if matrix.block[1] == 1:
        raise ValueError(f"matrix: want blocks of sides 16 to 128, got vectors {matrix.block}; use vector_spmm")
    return multiply(torch.ops.trisparse.block_spmm, x, matrix, bias, activation)
