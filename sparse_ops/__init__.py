"""Torch operators of sparsity: score, select, mask, pack, multiply.

The operators that prune take lists with one entry a layer. A layer's weight comes as its *unit view*: a
strided view `[rows, taps, cols]` or `[rows, cols]` of the parameter's own storage, read as the matrix
`[rows, taps * cols]`. A unit is an `n x m` block of that matrix, and what belongs to units has the
shape `[rows / n, taps * cols / m]`. Those that pack and multiply take one matrix `[rows, cols]`, dense, as a
`Packed24`, or as `PackedBlocks`.
"""

from trisparse.sparse_ops.blocks.block_spmm import block_spmm
from trisparse.sparse_ops.blocks.linear_blocks import LinearBlocks
from trisparse.sparse_ops.blocks.linear_masked import LinearMasked, mask_linear, unmask_linear
from trisparse.sparse_ops.blocks.masked_blocks import MaskedBlocks, masked_blocks
from trisparse.sparse_ops.blocks.masked_channels import MaskedChannels, masked_channels
from trisparse.sparse_ops.blocks.packed_blocks import PackedBlocks, check_blocks, pack_blocks, unpack_blocks
from trisparse.sparse_ops.blocks.vector_spmm import vector_spmm
from trisparse.sparse_ops.choosing.apply_masks import apply_masks
from trisparse.sparse_ops.choosing.cost_groups import cost_groups
from trisparse.sparse_ops.choosing.masked_adamw import adamw_rates, masked_adamw
from trisparse.sparse_ops.choosing.nm_mask import nm_mask
from trisparse.sparse_ops.choosing.nm_mask_2d import nm_mask_2d
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.choosing.score_units import score_units
from trisparse.sparse_ops.choosing.select_units import select_units
from trisparse.sparse_ops.choosing.thin_groups import thin_groups
from trisparse.sparse_ops.convolutions.packed_convs import Conv24, ConvBlocks
from trisparse.sparse_ops.two_four.layout_24 import layout_24
from trisparse.sparse_ops.two_four.linear_24 import Linear24
from trisparse.sparse_ops.two_four.linear_24_train import Linear24Train, refresh_every
from trisparse.sparse_ops.two_four.mask_24 import mask_24
from trisparse.sparse_ops.two_four.mm_24 import mm_24
from trisparse.sparse_ops.two_four.pack_24 import pack_24
from trisparse.sparse_ops.two_four.packed_24 import Packed24
from trisparse.sparse_ops.two_four.repack_24 import repack_24
from trisparse.sparse_ops.two_four.unpack_24 import unpack_24

__all__ = [
    "Conv24", "ConvBlocks", "Linear24", "Linear24Train", "LinearBlocks", "LinearMasked", "MaskedBlocks",
    "MaskedChannels", "Packed24", "PackedBlocks", "Plan", "adamw_rates", "apply_masks", "block_spmm", "check_blocks",
    "cost_groups", "layout_24", "mask_24", "mask_linear", "masked_adamw", "masked_blocks", "masked_channels", "mm_24",
    "nm_mask", "nm_mask_2d", "pack_24", "pack_blocks", "refresh_every", "repack_24", "score_units", "select_units",
    "thin_groups", "unmask_linear", "unpack_24", "unpack_blocks", "vector_spmm",
]  # fmt: skip
