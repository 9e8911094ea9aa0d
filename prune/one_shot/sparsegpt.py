"""SparseGPT: weights go one column after the other, and those behind make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.pruner.layer import Layer
from trisparse.sparse_ops import nm_mask, select_units

_COLUMNS = 128  # that share one choice of what goes, for 1x1
_DAMPING = 0.01  # of the Hessian's mean diagonal


class SparseGPT:
    """Least squares on the layer's own inputs, H = X Xᵀ; Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1.

    A weight costs w² / [H⁻¹]², or nothing where an input is always zero. 1x1 chooses over blocks of 128 columns, N:M
    within its groups when they are reached.

    Args:
        pattern: `N:M` or `1x1`.
        sparsity: share of the weights that goes, for 1x1.
    """

    def __init__(self, pattern: Pattern, sparsity: float) -> None:
        self.pattern, self.sparsity = pattern, sparsity
        self._hessians: dict[str, Tensor] = {}

    def see(self, layer: Layer, x: Tensor) -> None:
        """Add inputs `[tokens, in]` of a layer; holds `[in, in]` in fp32 for each layer of a block."""
        x = x.float()
        self._hessians[layer.name] = self._hessians.get(layer.name, 0) + x.t() @ x

    def prune(self, layer: Layer) -> None:
        """Zero weights of a layer and change the others, in place."""
        weight = layer.view.float().clone(memory_format=torch.contiguous_format)
        factor, live = self._factor(layer)
        m = self.pattern.m if self.pattern.is_nm else 1
        width = max(_COLUMNS // m, 1) * m
        for start in range(0, weight.shape[1], width):
            stop = min(start + width, weight.shape[1])
            part, inverse, alive = weight[:, start:stop].clone(), factor[start:stop, start:stop], live[start:stop]
            precision = alive / inverse.diagonal().square()
            errors = torch.zeros_like(part)
            keep = torch.ones_like(part, dtype=torch.bool)
            if not self.pattern.is_nm:
                keep = self._lowest_gone(part.square() * precision)
            for i in range(stop - start):
                if self.pattern.is_nm and i % m == 0:
                    cost = part[:, i : i + m].square() * precision[i : i + m]
                    keep[:, i : i + m] = nm_mask(cost, self.pattern.n, m)
                kept = part[:, i].where(keep[:, i], 0)
                errors[:, i] = (part[:, i] - kept) / inverse[i, i]
                part[:, i:] -= errors[:, i, None] * inverse[None, i, i:]
                part[:, i] = kept
            weight[:, start:stop] = part
            weight[:, stop:] -= errors @ factor[start:stop, stop:]
        layer.view.copy_(weight)

    def _factor(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Upper Cholesky factor of the inverse of the damped Hessian, and which inputs are not always zero."""
        hessian = self._hessians.pop(layer.name)
        diagonal = hessian.diagonal()
        live = diagonal != 0
        damping = _DAMPING * diagonal.sum() / live.sum().clamp(min=1)
        diagonal[~live] = 1
        diagonal += damping
        return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True), live

    def _lowest_gone(self, cost: Tensor) -> Tensor:
        cost = cost.contiguous()
        mask = torch.ones_like(cost, dtype=torch.bool)
        low = torch.zeros(1, dtype=torch.int64, device=cost.device)
        target = torch.full_like(low, int(self.sparsity * cost.numel() + 0.5))
        select_units([cost], [mask], [1], low, torch.full_like(low, cost.numel()), target)
        return mask
