"""Selection by sorting everything: simple, and without a wait for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.kernels.tables import upload
from trisparse.sparse_ops.choosing.sort_keys import NAN_KEY, PRUNED_KEY


def select_by_sorting(
    scores: Sequence[Tensor], masks: Sequence[Tensor], sizes: Sequence[int], lo: Tensor, hi: Tensor, targets: Tensor
) -> None:
    """`select_units` over all layers together, for units of any sizes; three int64 a unit while it runs."""
    lengths = [mask.numel() for mask in masks]
    device = lo.device
    units, weights = upload(lengths, torch.int64, device), upload(sizes, torch.int64, device)
    gone = units - torch.stack([mask.sum() for mask in masks])
    lo = torch.minimum(torch.maximum(lo, gone), units)
    hi = torch.minimum(torch.maximum(hi, lo), units)

    values = torch.cat([score.flatten().float() for score in scores]) + 0.0  # -0.0 becomes +0.0
    bits = values.view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).masked_fill_(values.isnan(), NAN_KEY)
    keys.masked_fill_(~torch.cat([mask.flatten() for mask in masks]), PRUNED_KEY)
    order = torch.argsort(keys, stable=True)
    layer = torch.repeat_interleave(torch.arange(len(lengths), device=device), units, output_size=sum(lengths))[order]

    by_layer = torch.argsort(layer, stable=True)
    starts = torch.cumsum(units, 0) - units
    rank = torch.empty_like(layer)  # of each unit in its layer
    rank[by_layer] = torch.arange(len(layer), device=device) - starts[layer[by_layer]]

    size = weights[layer]
    open_ = (rank >= lo[layer]) & (rank < hi[layer])
    sums = (lo * weights).sum() + torch.cumsum(size * open_, 0)  # weights gone with this unit, if the walk comes so far
    stop = open_ & (2 * (sums - size) + size >= 2 * targets)
    keep = torch.empty_like(open_)
    keep[order] = (rank >= lo[layer]) & ~(open_ & (torch.cumsum(stop, 0) == 0))
    for mask, part in zip(masks, keep.split(lengths), strict=True):
        mask.copy_(part.view(mask.shape))
