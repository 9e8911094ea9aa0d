"""Turn a packed 2:4 matrix back into a dense one."""

import torch
from torch import Tensor

from trisparse.kernels.layouts_24 import PLACES, nibble_table, packed_size, padded
from trisparse.sparse_ops.library import define
from trisparse.sparse_ops.two_four.libraries_24 import library_for, multiply
from trisparse.sparse_ops.two_four.packed_24 import Packed24, read_nibbles


def unpack_24_reference(packed: Tensor, rows: int, cols: int, layout: str) -> Tensor:
    """Plain torch; see `unpack_24`."""
    high, wide = padded(rows, cols, layout)
    size, _ = packed_size(rows, cols, layout, packed.element_size())
    nibbles = read_nibbles(packed[size:], high, wide, layout)
    table = nibble_table(layout)
    places = torch.tensor([PLACES[table.index(n)] if n in table else (0, 0) for n in range(16)], device=packed.device)
    dense = packed.new_zeros(high, wide // 4, 4)
    dense.scatter_(-1, places[nibbles], packed[:size].view(high, wide // 4, 2))
    return dense.view(high, wide)[:rows, :cols].contiguous()


def _kernel(packed, rows, cols, layout) -> Tensor:
    if layout == "library":  # only its product can read it
        library, eye = library_for(packed.device), torch.eye(cols, dtype=packed.dtype, device=packed.device)
        assert library is not None
        return multiply(library, eye, packed, None, rows, cols, layout).t().contiguous()
    from trisparse.kernels.gpu.unpack_24 import unpack_24

    return unpack_24(packed, rows, cols, layout)


def _fake(packed, rows, cols, layout) -> Tensor:
    return packed.new_empty(rows, cols)


define("unpack_24(Tensor packed, int rows, int cols, str layout) -> Tensor", unpack_24_reference, _kernel, _fake)


def unpack_24(matrix: Packed24) -> Tensor:
    """Dense `[rows, cols]` of a packed matrix: its values where they were, +0 elsewhere.

    In the layout `library` it is a product with ones that reads them, so values there have to be finite.
    """
    return torch.ops.trisparse.unpack_24(matrix.packed, matrix.rows, matrix.cols, matrix.layout)
