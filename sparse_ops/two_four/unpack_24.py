"""Turn a packed 2:4 matrix back into a dense one."""

import torch
from torch import Tensor

from trisparse.sparse_ops.library import define
from trisparse.sparse_ops.two_four.libraries_24 import library_for, multiply
from trisparse.sparse_ops.two_four.packed_24 import Packed24, unpack_reference


def _kernel(packed, rows, cols, layout) -> Tensor:
    if layout == "library":  # only its product can read it
        library, eye = library_for(packed.device), torch.eye(cols, dtype=packed.dtype, device=packed.device)
        assert library is not None
        return multiply(library, eye, packed, None, rows, cols, layout).t().contiguous()
    from trisparse.kernels.gpu.unpack_24 import unpack_24

    return unpack_24(packed, rows, cols, layout)


def _fake(packed, rows, cols, layout) -> Tensor:
    return packed.new_empty(rows, cols)


define("unpack_24(Tensor packed, int rows, int cols, str layout) -> Tensor", unpack_reference, _kernel, _fake)


def unpack_24(matrix: Packed24) -> Tensor:
    """Dense `[rows, cols]` of a packed matrix: its values where they were, +0 elsewhere.

    In the layout `library` it is a product with ones that reads them, so values there have to be finite.
    """
    return torch.ops.trisparse.unpack_24(matrix.packed, matrix.rows, matrix.cols, matrix.layout)
