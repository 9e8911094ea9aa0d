"""N:M: which weights of a group stay, and what it costs to prune the others, for all layers of a group at once."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.sparse_ops import Plan, cost_groups

_ALIGN = 64  # elements, so that each part starts where wide accesses may


def best_and_costs(
    scores: Sequence[Tensor], locked: Sequence[Tensor] | None, n: int, m: int, plans: defaultdict[str, Plan]
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks of the n best of every m, and what the others sum up to, `[rows, cols / m]` each.

    A weight that is False in `locked` goes before all others.
    """
    ranked = None
    if locked is not None:
        ranked = [score.masked_fill(~kept, -1.0) for score, kept in zip(scores, locked, strict=True)]
    shapes = [(score.shape[0], score.shape[1]) for score in scores]
    best = apart(shapes, torch.bool, scores[0].device)
    costs = apart([(rows, cols // m) for rows, cols in shapes], torch.float32, scores[0].device)
    cost_groups(scores, best, costs, n, m, ranked, plans["cost of groups"])
    return best, costs


def apart(shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Matrices in one allocation, their contents undefined."""
    *places, total = itertools.accumulate((-(-math.prod(shape) // _ALIGN) * _ALIGN for shape in shapes), initial=0)
    flat = torch.empty(total, dtype=dtype, device=device)
    return [flat.as_strided(shape, (shape[1], 1), place) for shape, place in zip(shapes, places, strict=True)]
