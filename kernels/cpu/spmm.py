"""Launches `spmm.cpp`, for vectors and for blocks."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import DTYPES, Product, plain, prepare_product, structure

_Weight = structure(
    "Weight", ("values", "columns", "pointers", "order", "bias"),
    ("rows", "cols", "n", "m", "run", "is_half", "activation"),
)  # fmt: skip


def prepare(matrix: Any, bias: Tensor | None, activation: str) -> Product | None:
    """`spmm` with one weight, for many calls; None where there is no kernel for it. See `prepare_product`."""
    if not _are_narrow(matrix):
        return None
    values, columns, pointers, order = matrix[:4]
    numbers = matrix.rows, matrix.cols, *matrix.block, matrix.run
    return prepare_product("spmm", _Weight, (values, columns, pointers, order), bias, numbers, activation)


def _are_narrow(matrix: Any) -> bool:
    """Whether columns, pointers and order are of the integers that kernels read them as."""
    return matrix.columns.dtype == torch.int16 and matrix.pointers.dtype == matrix.order.dtype == torch.int32


class Held(NamedTuple):
    """A weight for one call, and what keeps it in memory."""

    address: int
    parts: tuple[Any, ...]


def hold(matrix: Any, *others: Tensor) -> Held | None:
    """A `PackedBlocks` for a kernel without bias; None where there is none for it, or for the other tensors with it."""
    dtype = matrix.values.dtype
    if not _are_narrow(matrix) or dtype not in DTYPES or not matrix.cols:
        return None
    if any(not part.is_cpu for part in (*matrix[:4], *others)) or any(other.dtype != dtype for other in others):
        return None
    parts = [plain(part) for part in matrix[:4]]
    numbers = matrix.rows, matrix.cols, *matrix.block, matrix.run, dtype == torch.bfloat16, 0
    weight = _Weight(*(part.data_ptr() for part in parts), 0, *numbers)
    return Held(ctypes.addressof(weight), (weight, parts))


def spmm(x: Tensor, matrix: Any, bias: Tensor | None, activation: str) -> Tensor | None:
    """`[..., rows]` of the dtype of x, with sums in fp32; None where there is no kernel for it.

    Arguments as in `trisparse.sparse_ops.vector_spmm`, `matrix` being a `PackedBlocks`. Runs on as many threads as
    torch does; the result does not depend on how many.
    """
    product = prepare(matrix, bias, activation)
    return None if product is None else product(x)
