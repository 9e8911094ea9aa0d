"""SparseGPT: weights go one column after the other, and those behind make up for it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.one_shot.method import Method
from trisparse.sparse_ops import nm_mask, select_units

DAMPENING = 0.01
BLOCK_SIZE = 128


class SparseGPT(Method):
    """Least squares on the layer's own inputs, H = X Xᵀ; Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1.

    A weight costs w² / [H⁻¹]², or nothing where an input is always zero. 1x1 chooses over blocks of columns, N:M
    within its groups when they are reached.

    Args:
        pattern: `N:M` or `1x1`.
        sparsities: share of the weights that goes, by layer name, for 1x1; read when a layer is pruned.
        dampening: what is added to the Hessian's diagonal, as a share of its mean.
        block_size: columns that share one choice of what goes, for 1x1; for N:M, those that are updated together.

    Raises:
        PruningError: a dampening or a block size that is out of range, or no whole number of N:M's groups.
    """

    def __init__(
        self, pattern: Pattern, sparsities: Mapping[str, float], dampening: float = DAMPENING,
        block_size: int = BLOCK_SIZE,
    ) -> None:  # fmt: skip
        if not isinstance(dampening, (int, float)) or isinstance(dampening, bool) or not 0 < dampening < math.inf:
            raise PruningError(f"dampening: want a number above 0, such as {DAMPENING}, got {dampening!r}")
        if not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1:
            raise PruningError(f"block_size: want a whole number of columns, such as {BLOCK_SIZE}, got {block_size!r}")
        m = pattern.m if pattern.is_nm else 1
        if block_size % m and block_size != BLOCK_SIZE:
            raise PruningError(f"block_size: want a multiple of {m} for {pattern}, got {block_size}")
        self.pattern, self.sparsities = pattern, sparsities
        self._dampening, self._width = dampening, max(block_size // m, 1) * m
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
        for start in range(0, weight.shape[1], self._width):
            stop = min(start + self._width, weight.shape[1])
            part, inverse, alive = weight[:, start:stop].clone(), factor[start:stop, start:stop], live[start:stop]
            precision = alive / inverse.diagonal().square()
            errors = torch.zeros_like(part)
            keep = torch.ones_like(part, dtype=torch.bool)
            if not self.pattern.is_nm:
                keep = keep_of_matrix(part.square() * precision, self.sparsities[layer.name])
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
        damping = self._dampening * diagonal.sum() / live.sum().clamp(min=1)
        diagonal[~live] = 1
        diagonal += damping
        try:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
            return torch.linalg.cholesky(inverse, upper=True), live
        except torch.linalg.LinAlgError:
            raise PruningError(
                f"dampening: {self._dampening} is too little for {layer.name}, whose inputs depend on each other; want "
                "a larger share, or more batches"
            ) from None


def keep_of_matrix(cost: Tensor, sparsity: float) -> Tensor:
    """bool like `cost` `[rows, cols]`: of the whole the lowest costs go, in a tie those that come first."""
    cost = cost.contiguous()
    mask = torch.ones_like(cost, dtype=torch.bool)
    low = torch.zeros(1, dtype=torch.int64, device=cost.device)
    target = torch.full_like(low, int(sparsity * cost.numel() + 0.5))
    select_units([cost], [mask], [1], low, torch.full_like(low, cost.numel()), target)
    return mask
