"""Launches `mm_24.cpp`."""

from __future__ import annotations

from torch import Tensor

from trisparse.kernels.cpu.launch import Product, prepare_product, structure
from trisparse.kernels.layouts_24 import padded

_Weight = structure(
    "Weight24", ("values", "bias"), ("rows", "cols", "padded_rows", "padded_cols", "is_half", "activation")
)


def prepare(
    packed: Tensor, bias: Tensor | None, rows: int, cols: int, layout: str, activation: str = "none"
) -> Product | None:
    """`mm_24` with one weight, for many calls; None where there is no kernel for it. See `prepare_product`."""
    if layout != "bitmask":
        return None
    numbers = rows, cols, *padded(rows, cols, layout)
    return prepare_product("mm_24", _Weight, (packed,), bias, numbers, activation)


def mm_24(x: Tensor, packed: Tensor, bias: Tensor | None, rows: int, cols: int, layout: str) -> Tensor | None:
    """`x @ W.T + bias` with sums in fp32, W packed as 2:4 with bitmasks; None where there is no kernel for it.

    Runs on as many threads as torch does; the result does not depend on how many.

    Args:
        x: `[..., cols]` of the dtype of the values.
        packed: as `trisparse.sparse_ops.pack_24` writes it.
        bias: `[rows]` or None.
        rows: of W.
        cols: of W.
        layout: of the metadata.
    """
    product = prepare(packed, bias, rows, cols, layout)
    return None if product is None else product(x)
