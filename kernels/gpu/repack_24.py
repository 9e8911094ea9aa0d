"""Write the values of a packed 2:4 matrix anew."""

from __future__ import annotations

from torch import Tensor

from trisparse.kernels.gpu.pack_24 import launch, loadable


def repack_24(packed: Tensor, packed_t: Tensor, weight: Tensor, patterns: Tensor, layout: str) -> None:
    """Write the values of `weight` anew, in place; arguments as in `trisparse.sparse_ops.repack_24`."""
    weight = loadable(weight)
    launch(weight, weight, patterns.contiguous(), packed, packed_t, "patterns", layout, True)
