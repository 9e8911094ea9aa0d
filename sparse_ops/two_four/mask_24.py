"""The mask of a packed 2:4 matrix."""

import torch
from torch import Tensor

from trisparse.sparse_ops.library import define
from trisparse.sparse_ops.two_four.packed_24 import Packed24, check_patterns, mask_of


def _kernel(patterns, rows, cols) -> Tensor:
    from trisparse.kernels.gpu.mask_24 import mask_24

    return mask_24(patterns, rows, cols)


def _fake(patterns, rows, cols) -> Tensor:
    return patterns.new_empty((rows, cols), dtype=torch.bool)


define("mask_24(Tensor patterns, int rows, int cols) -> Tensor", mask_of, _kernel, _fake)


def mask_24(matrix: Packed24) -> Tensor:
    """bool `[rows, cols]`, True = kept; zeros that are kept are True, places that packing fills up are not.

    Raises:
        ValueError: a matrix without patterns, as `Linear24` has it.
    """
    check_patterns(matrix)
    return torch.ops.trisparse.mask_24(matrix.patterns, matrix.rows, matrix.cols)
