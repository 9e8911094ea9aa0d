"""Multiply with a matrix of column vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.sparse_ops.blocks.packed_blocks import PackedBlocks
from trisparse.sparse_ops.blocks.spmm import define_product, multiply


def _kernel(x, matrix, bias, activation) -> Tensor:
    from trisparse.kernels.gpu.vector_spmm import vector_spmm

    return vector_spmm(x, matrix, bias, activation)


define_product("vector_spmm", _kernel)


def vector_spmm(x: Tensor, matrix: PackedBlocks, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """`activation(x @ W.T + bias)` with W packed in column vectors N x 1 by `pack_blocks`.

    On a GPU the columns of x that a group of N rows needs are gathered and multiplied on tensor cores; up to 8 tokens
    are multiplied without them, and for N below 4 W is unpacked. On a CPU the kernel is `kernels/cpu/spmm.cpp`, for
    float32 and bfloat16; otherwise W is unpacked. Differentiable once, by x, `matrix.values` and bias: the
    gradient of the values is computed only where they are stored, that of x by W's index of columns if it was packed
    with `transposed`, else by W unpacked. Source: Chen et al. 2021, *Efficient tensor core-based GPU kernels for
    structured sparsity under reduced precision* (SC).

    Args:
        x: `[..., cols]`, of the dtype of the values.
        matrix: in blocks (N, 1).
        bias: `[rows]`, of the same dtype.
        activation: `none`, `relu`, `gelu` or `gelu_tanh`.

    Returns:
        `[..., rows]` of the dtype of x, accumulated in fp32 where there is a kernel.

    Raises:
        ValueError: a shape, block, device or activation that does not fit.
        TypeError: a dtype that does not.
    """
    if matrix.block[1] != 1:
        raise ValueError(f"matrix: want vectors N x 1, got blocks {matrix.block}; use block_spmm")
    return multiply(torch.ops.trisparse.vector_spmm, x, matrix, bias, activation)
