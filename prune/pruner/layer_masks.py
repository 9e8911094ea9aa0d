"""Masks of groups as masks of weights, by the names of layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.prune.layers.shards import spread_like
from trisparse.prune.pruner.group import PrunedGroup


def layer_masks(groups: Sequence[PrunedGroup], step: int) -> dict[str, Tensor]:
    """Name of each layer -> bool tensor of its weight's shape, True = kept; a DTensor if the weight is one."""
    found = {}
    for group in groups:
        masks, blocks = group.masks(step)
        for layer, mask, (n, m) in zip(group.layers, masks, blocks, strict=True):
            full = torch.empty(layer.values.shape, dtype=torch.bool, device=mask.device)
            view = layer.unit_view(full)
            rows, cols = mask.shape
            wide = mask[:, None, :, None].expand(rows, n, cols, m).reshape(view.shape)
            view.copy_(wide)
            found[layer.name] = spread_like(full, layer.weight)
    return found


def pruned_weights(groups: Sequence[PrunedGroup], step: int) -> dict[str, int]:
    """Name of each layer -> how many of its weights are pruned; waits for the device once a group."""
    pruned: dict[str, int] = {}
    for group in groups:
        masks, blocks = group.masks(step)
        kept = torch.stack([mask.sum() for mask in masks]).tolist()
        mine = [(mask.numel() - count) * n * m for mask, count, (n, m) in zip(masks, kept, blocks, strict=True)]
        pruned |= dict(zip([layer.name for layer in group.layers], group.weights.exchange.sum(mine), strict=True))
    return pruned
