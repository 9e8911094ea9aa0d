"""Launches `gather.cpp`, for vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trisparse.kernels.cpu.launch import function_of, plain
from trisparse.kernels.cpu.spmm import hold


def gather_values(weight: Tensor, matrix: Any) -> Tensor | None:
    """Values `[slots, n, 1]` of a dense weight at the places of `matrix`; None where there is no kernel for it."""
    values = weight.new_empty(len(matrix.columns), *matrix.block)
    return _moved("gather_values", plain(weight), values, matrix._replace(values=values))


def scatter_values(values: Tensor, matrix: Any) -> Tensor | None:
    """Dense `[rows, cols]` with values at the places of `matrix`, +0 elsewhere; None where there is no kernel."""
    dense = values.new_empty(matrix.rows, matrix.cols)
    return _moved("scatter_values", plain(values), dense, matrix._replace(values=values))


def _moved(name: str, source: Tensor, to: Tensor, matrix: Any) -> Tensor | None:
    function, held = function_of(name), hold(matrix, source, to)
    if function is None or held is None or matrix.block[1] != 1:
        return None
    function(held.address, source.data_ptr(), to.data_ptr(), 0, torch.get_num_threads())
    return to
