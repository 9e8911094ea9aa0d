"""Launches `spmm.cpp`, for vectors and for blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import Product, prepare_product, structure

_Weight = structure(
    "Weight", ("values", "columns", "pointers", "order", "bias"),
    ("rows", "cols", "n", "m", "run", "is_half", "activation"),
)  # fmt: skip


def prepare(matrix: Any, bias: Tensor | None, activation: str) -> Product | None:
    """`spmm` with one weight, for many calls; None where there is no kernel for it. See `prepare_product`."""
    if matrix.columns.dtype != torch.int16:
        return None
    values, columns, pointers, order = matrix[:4]
    numbers = matrix.rows, matrix.cols, *matrix.block, matrix.run
    return prepare_product("spmm", _Weight, (values, columns, pointers, order), bias, numbers, activation)


def spmm(x: Tensor, matrix: Any, bias: Tensor | None, activation: str) -> Tensor | None:
    """`[..., rows]` of the dtype of x, with sums in fp32; None where there is no kernel for it.

    Arguments as in `trisparse.sparse_ops.vector_spmm`, `matrix` being a `PackedBlocks`. Runs on as many threads as
    torch does; the result does not depend on how many.
    """
    product = prepare(matrix, bias, activation)
    return None if product is None else product(x)
