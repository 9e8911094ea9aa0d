"""N:M: which weights of a group stay, and what it costs to prune the others, for all layers of a group at once."""

from __future__ import annotations

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
    shapes = [tuple(score.shape) for score in scores]
    best = apart(shapes, torch.bool, scores[0].device)
    costs = apart([(rows, cols // m) for rows, cols in shapes], torch.float32, scores[0].device)
    cost_groups(scores, best, costs, n, m, ranked, plans["cost of groups"])
    return best, costs


def apart(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Tensors in one allocation, their contents undefined."""
    sizes = [math.prod(shape) for shape in shapes]
    spaces = [-(-size // _ALIGN) * _ALIGN for size in sizes]
    parts = torch.empty(sum(spaces), dtype=dtype, device=device).split(spaces)
    return [part[:size].view(shape) for part, size, shape in zip(parts, sizes, shapes, strict=True)]
