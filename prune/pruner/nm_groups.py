"""N:M: which weights of a group stay, and what it costs to prune the others."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import Tensor

from trisparse.sparse_ops import Plan, apply_masks, nm_mask


def best_of_groups(scores: Sequence[Tensor], locked: Sequence[Tensor] | None, n: int, m: int) -> list[Tensor]:
    """Masks of the n best of every m; a weight that is False in `locked` goes before all others."""
    if locked is not None:
        scores = [score.masked_fill(~kept, -1.0) for score, kept in zip(scores, locked, strict=True)]
    return [nm_mask(score, n, m) for score in scores]


def group_costs(score: Tensor, best: Tensor, m: int, plan: Plan) -> Tensor:
    """Sums of the scores that go if every group of a layer is pruned, `[rows, cols / m]`."""
    lost = score.clone()
    apply_masks([lost], [~best], [(1, 1)], plan)
    first, *rest = lost.view(len(lost), lost.shape[1] // m, m).unbind(2)
    return functools.reduce(Tensor.add_, rest, first.clone())
