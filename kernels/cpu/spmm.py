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
_ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}


@functools.cache
def _function() -> Callable[..., None] | None:
    library = kernels()
    if library is None:
        return None
    library.spmm.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 10
    library.spmm.restype = None
    return library.spmm


def runs_packed(dtype: torch.dtype) -> bool:
    """Whether there is a kernel for values of this dtype, on this machine."""
    return dtype in DTYPES and _function() is not None


def spmm(x: Tensor, matrix: Any, bias: Tensor | None, activation: str) -> Tensor | None:
    """`[tokens, rows]` of the dtype of x, with sums in fp32; None where there is no kernel for it.

    Arguments as in `trisparse.sparse_ops.vector_spmm`, x `[tokens, cols]` and `matrix` a `PackedBlocks`. Runs on as
    many threads as torch does; the result does not depend on how many.
    """
    if not runs_packed(x.dtype):
        return None
    function: Any = _function()
    x, values = x.resolve_neg().contiguous(), matrix.values.resolve_neg().contiguous()
    bias = None if bias is None else bias.resolve_neg().contiguous()
    out = torch.empty(x.shape[0], matrix.rows, dtype=x.dtype)
    _, n, m = values.shape
    function(
        x.data_ptr(), values.data_ptr(), matrix.columns.data_ptr(), matrix.pointers.data_ptr(), matrix.order.data_ptr(),
        None if bias is None else bias.data_ptr(), out.data_ptr(),
        x.shape[0], matrix.rows, matrix.cols, n, m, matrix.run, matrix.columns.dtype == torch.int32,
        x.dtype == torch.bfloat16, _ACTIVATIONS[activation], torch.get_num_threads(),
    )  # fmt: skip
    return out
