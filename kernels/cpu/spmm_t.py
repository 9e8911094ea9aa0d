"""Launches `spmm_t.cpp`, for vectors and for blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import function_of, plain
from trisparse.kernels.cpu.spmm import hold


def spmm_t(grad: Tensor, matrix: Any) -> Tensor | None:
    """`grad @ W`, `[tokens, cols]` of the dtype of the values, with sums in fp32; None where there is no kernel for it.

    Arguments as `trisparse.sparse_ops.blocks.spmm_t` takes them; the index by column is not needed.
    """
    function, held = function_of("spmm_t"), hold(matrix, grad)
    if function is None or held is None:
        return None
    grad = plain(grad)
    out = grad.new_empty(len(grad), matrix.cols)
    function(held.address, grad.data_ptr(), out.data_ptr(), len(grad), torch.get_num_threads())
    return out
