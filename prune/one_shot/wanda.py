"""Wanda: weights go by their size times the norm of what they multiply."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.layers.layer import Layer
from trisparse.prune.one_shot.method import Method
from trisparse.sparse_ops import nm_mask, select_units


class Wanda(Method):
    """Scores |W_ij| · ‖X_j‖₂, compared within each row of W, an output; Sun et al. 2023, arXiv 2306.11695.

    Args:
        pattern: `N:M` or `1x1`.
        sparsities: share of each row's weights that goes, by layer name, for 1x1; read when a layer is pruned.
    """

    def __init__(self, pattern: Pattern, sparsities: Mapping[str, float]) -> None:
        self.pattern, self.sparsities = pattern, sparsities
        self._squares: dict[str, Tensor] = {}

    def see(self, layer: Layer, x: Tensor) -> None:
        """Add inputs `[tokens, in]` of a layer."""
        squares = x.float().square().sum(0)
        self._squares[layer.name] = self._squares.get(layer.name, 0) + squares

    def score(self, layer: Layer) -> Tensor:
        """fp32 `[out, in]`; forgets what was seen."""
        return layer.view.float().abs() * self._squares.pop(layer.name).sqrt()

    def keep(self, layer: Layer, score: Tensor) -> Tensor:
        """bool `[out, in]`, which weights stay."""
        if self.pattern.is_nm:
            return nm_mask(score, self.pattern.n, self.pattern.m)
        return keep_of_rows(score, self.sparsities[layer.name])

    def prune(self, layer: Layer) -> None:
        """Zero a layer's weights in place."""
        layer.view.mul_(self.keep(layer, self.score(layer)))


def keep_of_rows(score: Tensor, sparsity: float) -> Tensor:
    """bool like `score` `[rows, cols]`: of each row the lowest scores go, in a tie the lower columns."""
    rows, cols = score.shape
    score, mask = score.contiguous(), torch.ones(rows, cols, dtype=torch.bool, device=score.device)
    low = torch.zeros(rows, dtype=torch.int64, device=score.device)
    target = torch.full_like(low, int(sparsity * cols + 0.5))
    select_units(list(score.split(1)), list(mask.split(1)), [1] * rows, low, torch.full_like(low, cols), target)
    return mask
