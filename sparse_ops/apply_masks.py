"""Write zeros where a mask prunes, in place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.sparse_ops.units import Block, check_lengths, check_units, check_view

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def apply_masks_reference(weights: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[Block]) -> None:
    """Plain torch; see `apply_masks`."""
    scratch: dict[tuple[torch.dtype, torch.device], Tensor] = {}  # one for all layers, to stay in cache
    largest = max((mask.numel() for mask in masks), default=0)
    for weight, mask, (n, m) in zip(weights, masks, blocks, strict=True):
        if not weight.numel():
            continue
        # a weight's bits times one or zero: NaN, inf and the sign of zero go too
        bits = weight.view(_BITS[weight.element_size()])
        rows, cols = mask.shape
        key = bits.dtype, bits.device
        if key not in scratch:
            scratch[key] = torch.empty(largest, dtype=bits.dtype, device=bits.device)
        keep = scratch[key][: mask.numel()].view(mask.shape).copy_(mask.view(torch.int8))
        if weight.dim() == 2:
            bits.unflatten(0, (rows, n)).unflatten(2, (cols, m)).mul_(keep[:, None, :, None])
        else:
            wide = keep[:, None, :, None].expand(rows, n, cols, m)
            bits.mul_(wide.reshape(weight.shape))


def apply_masks(weights: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[Block]) -> None:
    """Set every weight of a pruned unit to +0.0, in place; the storage does not move.

    Args:
        weights: unit views, any float dtype; changed in place.
        masks: bool `[rows/n, cols/m]` each, contiguous, True = kept.
        blocks: `(n, m)` of each layer; `(1, 1)` for a mask with one value a weight.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: a mask that is not contiguous bool.
    """
    check_lengths(weights=weights, masks=masks, blocks=blocks)
    for i, (weight, mask, block) in enumerate(zip(weights, masks, blocks, strict=True)):
        check_view(f"weights[{i}]", weight, block)
        check_units(f"masks[{i}]", mask, weight, block)
        if mask.dtype != torch.bool or not mask.is_contiguous():
            raise TypeError(f"masks[{i}]: want contiguous torch.bool, got {mask.dtype}")
    apply_masks_reference(weights, masks, blocks)
