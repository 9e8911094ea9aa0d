"""A number that tells masks apart, however the layers are spread over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.prune.choosing.splitmix import MIX, mix
from trisparse.prune.pruner.group import PrunedGroup

_BITS = 2**63 - 1


def mask_hash(groups: list[PrunedGroup], step: int) -> int:
    """Hash of the masks in force after this many steps, 63 bits; all processes of a sharded group make this call."""
    total = 0
    for number, group in enumerate(groups):
        masks, blocks = group.masks(step)
        sums = []
        for layer, mask, (height, _) in zip(group.layers, masks, blocks, strict=True):
            first = layer.rows.first // height * mask.shape[1]
            sums.append(_weigh(mask, first))
        for i, part in enumerate(group.weights.exchange.sum(sums)):
            total += (part & _BITS) * (MIX[0] + 2 * (1000 * number + i))
    return total & _BITS


def _weigh(mask: Tensor, first: int) -> int:
    """Sum of a pseudorandom number for each place that is kept, counted from `first`; wraps around."""
    place = torch.arange(first, first + mask.numel(), device=mask.device)
    return int(mix(place)[mask.flatten()].sum())
