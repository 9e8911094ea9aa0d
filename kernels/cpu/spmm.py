"""Launches `spmm.cpp`, for vectors and for blocks."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.build import kernels

DTYPES = (torch.float32, torch.bfloat16)
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}


class _Weight(ctypes.Structure):
    """`Weight` of `spmm.cpp`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("values", "columns", "pointers", "order", "bias")] + [
        (name, ctypes.c_int64) for name in ("rows", "cols", "n", "m", "run", "is_half", "activation")
    ]


@functools.cache
def _function() -> Callable[..., None] | None:
    library = kernels()
    if library is None:
        return None
    library.spmm.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
    library.spmm.restype = None
    return library.spmm


def runs_packed(dtype: torch.dtype) -> bool:
    """Whether there is a kernel for values of this dtype, on this machine."""
    return dtype in DTYPES and _function() is not None


def prepare(matrix: Any, bias: Tensor | None, activation: str) -> Callable[[Tensor], Tensor] | None:
    """A product that is called often with one weight: x `[..., cols]` of its dtype to `[..., rows]`.

    It reads the tensors where they lie now, and keeps them alive. None where there is no kernel for them. Arguments as
    in `spmm`. The product raises ValueError for another number of columns.
    """
    values = matrix.values.detach().resolve_neg().contiguous()
    bias = None if bias is None else bias.detach().resolve_neg().contiguous()
    held = values, *matrix[1:4], bias
    fits = bias is None or (bias.shape == (matrix.rows,) and bias.dtype == values.dtype)
    fits = fits and matrix.columns.dtype == torch.int16 and all(part is None or part.is_cpu for part in held)
    if not (fits and matrix.cols and runs_packed(values.dtype)):
        return None
    function: Any = _function()
    _, n, m = values.shape
    rows, cols, is_half = matrix.rows, matrix.cols, values.dtype == torch.bfloat16
    addresses = [0 if part is None else part.data_ptr() for part in held]
    weight = _Weight(*addresses, rows, cols, n, m, matrix.run, is_half, ACTIVATIONS[activation])
    address, threads = ctypes.addressof(weight), torch.get_num_threads

    def product(x: Tensor, held: Any = (held, weight)) -> Tensor:
        shape = x.shape
        if not shape or shape[-1] != cols:
            raise ValueError(f"x: want [..., {cols}] for a matrix [{rows}, {cols}], got {list(shape)}")
        if not x.is_contiguous() or x.is_neg():
            x = x.resolve_neg().contiguous()
        out = x.new_empty((*shape[:-1], rows))
        function(address, x.data_ptr(), out.data_ptr(), x.numel() // cols, threads())
        return out

    return product


def spmm(x: Tensor, matrix: Any, bias: Tensor | None, activation: str) -> Tensor | None:
    """`[..., rows]` of the dtype of x, with sums in fp32; None where there is no kernel for it.

    Arguments as in `trisparse.sparse_ops.vector_spmm`, `matrix` being a `PackedBlocks`. Runs on as many threads as
    torch does; the result does not depend on how many.
    """
    product = prepare(matrix, bias, activation)
    return None if product is None else product(x)
