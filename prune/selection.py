"""How many units each layer may give up at an event, and which go."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from trisparse.prune.config import GroupConfig
from trisparse.sparse_ops import select_units

_SLACK = 1e-9  # a bound such as 0.98 * 50 is meant as 49, not as 48.999...


def bounds(config: GroupConfig, sparsity: float, weights: int, size: int, units: int, pruned: int) -> tuple[int, int]:
    """Fewest and most units that a layer of this many weights has gone after the event."""
    share = config.min_sparsity_ratio_per_op * sparsity / config.target_sparsity
    low = min(max(math.floor(share * weights / size + _SLACK), pruned), units)
    high = min(math.floor(config.max_sparsity_ratio_per_op * weights / size + _SLACK), units)
    return low, max(high, low)


def select(
    config: GroupConfig,
    sparsity: float,
    scores: Sequence[Tensor],
    kept: Sequence[Tensor],
    sizes: Sequence[int],
    weights: Sequence[int],
) -> list[Tensor]:
    """New unit masks that leave `sparsity` of the weights zero; what is pruned stays pruned.

    `scores` and `kept` are per unit; `sizes` the weights a unit gives up, `weights` those of the layer.
    """
    pruned = [~mask for mask in kept]
    limits = [
        bounds(config, sparsity, w, p, gone.numel(), int(gone.sum()))
        for w, p, gone in zip(weights, sizes, pruned, strict=True)
    ]
    low, high = [b[0] for b in limits], [b[1] for b in limits]

    def walk(part: slice) -> list[Tensor]:
        target = math.floor(sparsity * sum(weights[part]) + 0.5)
        return select_units(scores[part], pruned[part], sizes[part], low[part], high[part], target)

    if config.pruning_scope == "global":
        return walk(slice(None))
    return [walk(slice(i, i + 1))[0] for i in range(len(scores))]
