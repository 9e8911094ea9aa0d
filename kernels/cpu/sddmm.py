"""Launches `sddmm.cpp`, for vectors and for blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import function_of, plain
from trisparse.kernels.cpu.spmm import hold


def sddmm(grad: Tensor, x: Tensor, matrix: Any) -> Tensor | None:
    """`grad.T @ x` where values are stored, in their shape, with sums in fp32; None where there is no kernel for it.

    Arguments as `trisparse.sparse_ops.blocks.sddmm` takes them.
    """
    function, held = function_of("sddmm", 3), hold(matrix, grad, x)
    if function is None or held is None:
        return None
    grad, x = plain(grad), plain(x)
    out = torch.empty(matrix.values.shape, dtype=matrix.values.dtype, device="cpu")
    function(held.address, grad.data_ptr(), x.data_ptr(), out.data_ptr(), len(x), torch.get_num_threads())
    return out
