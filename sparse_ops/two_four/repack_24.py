"""Write the values of a packed 2:4 matrix anew."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.kernels.layouts_24 import packed_size
from trisparse.sparse_ops.checks import check_device, check_dtype
from trisparse.sparse_ops.library import define, nothing
from trisparse.sparse_ops.two_four.libraries_24 import compress
from trisparse.sparse_ops.two_four.packed_24 import Packed24, check_patterns, mask_of, pack_reference


def repack_24_reference(packed, packed_t, weight, patterns, layout) -> None:
    """Plain torch; see `repack_24`."""
    rows, cols = weight.shape
    mask, (size, _) = mask_of(patterns, rows, cols), packed_size(rows, cols, layout, packed.element_size())
    for target, dense, kept in ((packed, weight, mask), (packed_t, weight.t(), mask.t())):
        if target.numel():
            target[:size].copy_(pack_reference(dense.to(packed.dtype), kept, layout)[:size])


def _kernel(packed, packed_t, weight, patterns, layout) -> None:
    if layout == "library":
        dense = weight.to(packed.dtype).where(mask_of(patterns, *weight.shape), 0)
        for target, values in zip((packed, packed_t), compress(dense, layout, packed_t.numel() > 0), strict=True):
            target.copy_(values)
        return
    from trisparse.kernels.gpu.repack_24 import repack_24

    repack_24(packed, packed_t, weight, patterns, layout)


define(
    "repack_24(Tensor(a!) packed, Tensor(b!) packed_t, Tensor weight, Tensor patterns, str layout) -> ()",
    repack_24_reference, _kernel, nothing,
)  # fmt: skip


def repack_24(matrix: Packed24, weight: Tensor) -> None:
    """Write the values of `weight` into a packed matrix, in place; what is kept stays, metadata is not touched.

    Args:
        matrix: as `pack_24` returned it.
        weight: `[rows, cols]` of the same matrix, any float dtype; rounded to that of the packed values.

    Raises:
        ValueError: another shape or device, or a matrix without patterns, as `Linear24` has it.
        TypeError: a dtype that is no float.
    """
    check_dtype("weight", weight)
    check_device(packed=matrix.packed, weight=weight)
    if tuple(weight.shape) != (matrix.rows, matrix.cols):
        raise ValueError(f"weight: want {[matrix.rows, matrix.cols]} as packed, got {list(weight.shape)}")
    check_patterns(matrix)
    torch.ops.trisparse.repack_24(matrix.packed, matrix.packed_t, weight.detach(), matrix.patterns, matrix.layout)
