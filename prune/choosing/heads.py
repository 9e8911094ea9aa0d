"""Heads of attention as units: all its layers keep them, or none; one a layer stays."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.prune.config.group import GroupConfig
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.sparse_ops import Plan, apply_masks


def attentions_in(layers: Sequence[Layer]) -> list[list[int]]:
    """Numbers of the layers of each attention, the one that reads the heads last; none without heads."""
    found: dict[str, list[int]] = {}
    for number, layer in enumerate(layers):
        if layer.attention is not None:
            found.setdefault(layer.attention, []).append(number)
    return list(found.values())


def head_scores(
    scores: Sequence[Tensor], sizes: Sequence[int], attentions: Sequence[Sequence[int]], config: GroupConfig
) -> list[Tensor]:
    """Scores of the heads of each attention, from those of its layers, `[heads, 1]` all.

    They are the mean, sum or maximum over all weights of a head, of which its layers have `sizes`. The mask of a head
    multiplies what it gives, so for `block_mask` the columns that read this say it all.
    """
    found = []
    for own in attentions:
        if config.criterion == "block_mask":
            found.append(scores[own[-1]])
            continue
        several = torch.stack([scores[i] for i in own])
        if config.criterion_reduce_type == "mean":
            whole = sum(sizes[i] for i in own)
            several = torch.stack([scores[i] * (sizes[i] / whole) for i in own])
        found.append(several.amax(0) if config.criterion_reduce_type == "max" else several.sum(0))
    return found


def zero_biases(layers: Sequence[Layer], units: Sequence[Tensor], plan: Plan) -> None:
    """Zero, in place, the biases of queries, keys and values of pruned heads, whose outputs nothing reads."""
    views, masks, blocks = [], [], []
    for layer, mask in zip(layers, units, strict=True):
        bias = layer.module._parameters.get(layer.bias) if layer.bias else None
        if bias is not None:
            views.append(layer.pattern.unit_view(bias.detach()[:, None], "linear"))
            masks.append(mask)
            blocks.append(layer.pattern.block(views[-1]))
    apply_masks(views, masks, blocks, plan)


def check_reach(config: GroupConfig, sizes: Sequence[int], heads: Sequence[int], names: Sequence[str]) -> None:
    """PruningError if the target is missed by more than half a head, since one of each attention stays."""
    every = range(len(sizes))
    for part in [every] if config.pruning_scope == "global" else [[i] for i in every]:
        total = sum(sizes[i] * heads[i] for i in part)
        most = sum(sizes[i] * (heads[i] - 1) for i in part)
        if config.target * total - most > max(sizes[i] for i in part) / 2:
            where = "each attention" if config.pruning_scope == "global" else names[part[0]]
            raise PruningError(
                f"target_sparsity: {config.target} is out of reach for mha, since one head of {where} stays; "
                f"want at most {int(most / total * 1e4) / 1e4:g}"
            )
