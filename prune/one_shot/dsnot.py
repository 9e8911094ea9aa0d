"""DSnoT: a mask's weights are swapped until each output's mean is what the dense layer gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from trisparse.prune.config.patterns import Pattern
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.layer import Layer
from trisparse.prune.one_shot.method import Method
from trisparse.prune.one_shot.sparsegpt import keep_of_matrix
from trisparse.prune.one_shot.wanda import Wanda
from trisparse.sparse_ops import nm_mask

MASKS = ("wanda", "magnitude")
_CYCLES = 50  # swaps that a row may try, the paper's T


class _Moments(NamedTuple):
    """Of inputs: how many tokens, their mean and the sum of their squared distances from it, fp32 `[in]`."""

    tokens: int
    mean: Tensor
    spread: Tensor


class DSnoT(Method):
    """Swaps weights of a mask, row by row; Zhang et al. 2023, arXiv 2310.08915.

    Args:
        pattern: `N:M` or `1x1`.
        sparsities: as for `Wanda`.
        mask: `wanda`, or `magnitude`: of 1x1 the layer's smallest weights.
    """

    def __init__(self, pattern: Pattern, sparsities: Mapping[str, float], mask: str = MASKS[0]) -> None:
        if mask not in MASKS:
            raise PruningError(f"dsnot_mask: want {' or '.join(MASKS)}, got {mask!r}")
        self.pattern, self.sparsities = pattern, sparsities
        self._wanda, self._mask = Wanda(pattern, sparsities), mask
        self._moments: dict[str, _Moments] = {}

    def see(self, layer: Layer, x: Tensor) -> None:
        """Add inputs `[tokens, in]` of a layer."""
        self._wanda.see(layer, x)
        if not len(x):
            return
        mean = x.float().mean(0)
        new = _Moments(len(x), mean, (x.float() - mean).square().sum(0))
        self._moments[layer.name] = _joined(self._moments.get(layer.name), new)

    def unseen(self, layer: Layer) -> None:
        """Leave an expert's mask as its sizes make it, since there is no mean to keep."""
        self._wanda.unseen(layer)

    def prune(self, layer: Layer) -> None:
        """Zero a layer's weights in place."""
        cost = self._wanda.score(layer)
        if self._mask == "wanda":
            keep = self._wanda.keep(layer, cost)
        elif self.pattern.is_nm:
            keep = nm_mask(layer.view.float().abs(), self.pattern.n, self.pattern.m)
        else:
            keep = keep_of_matrix(layer.view.float().abs(), self.sparsities[layer.name])
        if layer.name in self._moments:
            seen = self._moments.pop(layer.name)
            share = layer.view.float() * seen.mean
            keep = swapped(keep, share, seen.spread / seen.tokens, cost, self.pattern.m if self.pattern.is_nm else None)
        layer.view.mul_(keep)


def _joined(a: _Moments | None, b: _Moments) -> _Moments:
    if a is None:
        return b
    tokens, apart = a.tokens + b.tokens, b.mean - a.mean
    mean = a.mean + apart * (b.tokens / tokens)
    return _Moments(tokens, mean, a.spread + b.spread + apart.square() * (a.tokens * b.tokens / tokens))


def swapped(keep: Tensor, share: Tensor, variance: Tensor, cost: Tensor, group: int | None = None) -> Tensor:
    """A mask with as many weights in each row, and in each group, that loses less of each output's mean.

    A row's error is the sum of `share` over what it prunes. Of the pruned weights whose share has the error's sign, the
    one with the greatest |share| / variance comes back, and the cheapest kept one of the other sign goes; of N:M, the
    cheapest of the same group with which the error gets smaller. Only a swap that makes |error| smaller is made, where
    the paper stops at an error of 0.1, whatever the inputs' unit. A weight takes part once, and a row tries up to 50.

    Args:
        keep: bool `[rows, cols]`, what is kept to begin with.
        share: fp32 `[rows, cols]`, W_ij · E[X_j].
        variance: fp32 `[cols]`, Var[X_j].
        cost: fp32 `[rows, cols]`, what a weight's loss costs, |W_ij| · ‖X_j‖₂.
        group: M of N:M, or None.
    """
    keep = keep.clone()
    error = share.where(~keep, 0).sum(1)
    rank = -share.abs() / variance
    back = [_first(~keep & (share * sign > 0), rank) for sign in (1, -1)]
    gone = [_first(keep & (share * sign < 0), cost) for sign in (1, -1)] if group is None else []
    tried, made = (torch.zeros(len(keep), 2, dtype=torch.int64, device=keep.device) for _ in range(2))
    free = keep.clone()  # kept from the beginning on
    row = torch.arange(len(keep), device=keep.device)
    for _ in range(_CYCLES):
        side = (error < 0).long()
        i = _entry(back, side, tried)
        after = share.new_full(error.shape, torch.inf)
        if group is None:
            j = _entry(gone, side, made)
            after = (error + share[row, j] - share[row, i]).where(j >= 0, torch.inf)
        else:
            members = i[:, None].clamp(min=0) // group * group + torch.arange(group, device=keep.device)
            afters = error[:, None] + share.gather(1, members) - share[row, i][:, None]
            fits = free.gather(1, members) & (afters.abs() < error.abs()[:, None])
            best = cost.gather(1, members).where(fits, torch.inf).argmin(1)
            j, after = members[row, best], afters[row, best].where(fits.any(1), torch.inf)
        better = (i >= 0) & (after.abs() < error.abs())
        if not bool((i >= 0).any()):
            break
        keep[row[better], i[better]] = True
        keep[row[better], j[better]] = free[row[better], j[better]] = False
        error = after.where(better, error)
        tried[row, side] += 1
        made[row, side] += better
    return keep


def _first(candidates: Tensor, key: Tensor) -> Tensor:
    """int64 `[rows, up to 50]`, columns of the candidates by ascending key, in a tie the lower first; then -1."""
    order = key.where(candidates, torch.inf).argsort(dim=1, stable=True)[:, :_CYCLES]
    order = torch.nn.functional.pad(order, (0, 1))  # so that there is always one more
    count = candidates.sum(1, keepdim=True)
    return order.where(torch.arange(order.shape[1], device=order.device) < count.clamp(max=order.shape[1] - 1), -1)


def _entry(tables: list[Tensor], side: Tensor, place: Tensor) -> Tensor:
    """int64 `[rows]`, each row's next column in the table of its side, or -1."""
    row = torch.arange(len(side), device=side.device)
    at = place[row, side].clamp(max=tables[0].shape[1] - 1)
    return tables[0][row, at].where(side == 0, tables[1][row, at])
