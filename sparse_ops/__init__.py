"""Torch operators of sparsity: score, select, mask.

Every operator takes lists with one entry a layer. A layer's weight comes as its *unit view*: a
strided view `[rows, taps, cols]` or `[rows, cols]` of the parameter's own storage, read as the matrix
`[rows, taps * cols]`. A unit is an `n x m` block of that matrix, and what belongs to units has the
shape `[rows / n, taps * cols / m]`.
"""

from trisparse.sparse_ops.apply_masks import apply_masks
from trisparse.sparse_ops.masked_adamw import adamw_rates, masked_adamw
from trisparse.sparse_ops.nm_mask import nm_mask
from trisparse.sparse_ops.nm_mask_2d import nm_mask_2d
from trisparse.sparse_ops.plan import Plan
from trisparse.sparse_ops.score_units import score_units
from trisparse.sparse_ops.select_units import select_units

__all__ = ["Plan", "adamw_rates", "apply_masks", "masked_adamw", "nm_mask", "nm_mask_2d", "score_units", "select_units"]
