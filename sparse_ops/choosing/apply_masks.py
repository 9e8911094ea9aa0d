"""Write zeros where a mask prunes, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.kernels.plan import plan_units
from trisparse.sparse_ops.checks import check_device, check_lengths
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.choosing.units import Block, check_units, check_view, flat, pairs
from trisparse.sparse_ops.library import define, nothing

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


def _reference(weights, masks, blocks, plan) -> None:
    apply_masks_reference(weights, masks, pairs(blocks))


def _on_cpu(weights, masks, blocks, plan) -> None:
    apply_masks_on_cpu(weights, masks, pairs(blocks))


def apply_masks_on_cpu(weights: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[Block]) -> None:
    """As `apply_masks_reference`, in C++ for the layers that there is a kernel for."""
    from trisparse.kernels.cpu.apply_masks import apply_masks

    left = apply_masks(weights, masks, blocks)
    apply_masks_reference([weights[i] for i in left], [masks[i] for i in left], [blocks[i] for i in left])


def _kernel(weights, masks, blocks, plan) -> None:
    from trisparse.kernels.gpu.apply_masks import apply_masks

    apply_masks(weights, masks, pairs(blocks), plan)


_call = define(
    "apply_masks(Tensor(a!)[] weights, Tensor[] masks, int[] blocks, Tensor[] plan) -> ()",
    _reference,
    _kernel,
    nothing,
    _on_cpu,
)


def apply_masks(
    weights: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[Block], plan: Plan | None = None
) -> None:
    """Set every weight of a pruned unit to +0.0, in place; the storage does not move.

    Args:
        weights: unit views, any float dtype; changed in place.
        masks: bool `[rows/n, cols/m]` each, contiguous, True = kept.
        blocks: `(n, m)` of each layer; `(1, 1)` for a mask with one value a weight.
        plan: keeps what need be done only once; see `Plan`.

    Raises:
        ValueError: a shape that does not fit.
        TypeError: a mask that is not contiguous bool.
    """
    (plan or Plan()).check("apply_masks", lambda: _check(weights, masks, blocks))
    if not weights:
        return
    tables = []
    if plan:
        tables = plan.tables(
            "apply_masks", lambda old, found: plan_units(weights, [masks], blocks, old, found), weights, masks
        )
    _call(weights, masks, flat(blocks), tables)


def _check(weights: Sequence[Tensor], masks: Sequence[Tensor], blocks: Sequence[Block]) -> None:
    check_lengths(weights=weights, masks=masks, blocks=blocks)
    check_device(weights=weights, masks=masks)
    for i, (weight, block) in enumerate(zip(weights, blocks, strict=True)):
        check_view(f"weights[{i}]", weight, block)
    check_masks(masks, weights, blocks)


def check_masks(masks: Sequence[Tensor], weights: Sequence[Tensor], blocks: Sequence[Block]) -> None:
    """TypeError or ValueError unless kernels can read masks of these weights."""
    for i, (weight, mask, block) in enumerate(zip(weights, masks, blocks, strict=True)):
        check_units(f"masks[{i}]", mask, weight, block)
        if mask.dtype != torch.bool or not mask.is_contiguous():
            raise TypeError(f"masks[{i}]: want contiguous torch.bool, got {mask.dtype}")
