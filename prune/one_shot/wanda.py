"""Wanda: weights go by their size times the norm of what they multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.pruner.layer import Layer
from trisparse.sparse_ops import nm_mask, select_units


class Wanda:
    """Scores |W_ij| · ‖X_j‖₂, compared within each row of W, an output; Sun et al. 2023, arXiv 2306.11695.

    Args:
        pattern: `N:M` or `1x1`.
        sparsity: share of each row's weights that goes, for 1x1.
    """

    def __init__(self, pattern: Pattern, sparsity: float) -> None:
        self.pattern, self.sparsity = pattern, sparsity
        self._squares: dict[str, Tensor] = {}

    def see(self, layer: Layer, x: Tensor) -> None:
        """Add inputs `[tokens, in]` of a layer."""
        squares = x.float().square().sum(0)
        self._squares[layer.name] = self._squares.get(layer.name, 0) + squares

    def prune(self, layer: Layer) -> None:
        """Zero a layer's weights in place."""
        weight = layer.view
        score = weight.float().abs() * self._squares.pop(layer.name).sqrt()
        if self.pattern.is_nm:
            mask = nm_mask(score, self.pattern.n, self.pattern.m)
        else:
            mask = keep_of_rows(score, self.sparsity)
        weight.mul_(mask)


def keep_of_rows(score: Tensor, sparsity: float) -> Tensor:
    """bool like `score` `[rows, cols]`: of each row the lowest scores go, in a tie the lower columns."""
    rows, cols = score.shape
    score, mask = score.contiguous(), torch.ones(rows, cols, dtype=torch.bool, device=score.device)
    low = torch.zeros(rows, dtype=torch.int64, device=score.device)
    target = torch.full_like(low, int(sparsity * cols + 0.5))
    select_units(list(score.split(1)), list(mask.split(1)), [1] * rows, low, torch.full_like(low, cols), target)
    return mask
