"""Select the units to prune: the lowest scores over all layers, exactly, under bounds for each layer.

Fast without a full sort. A histogram of the keys' leading bits, one row a layer, says how many units
each layer would give up at any threshold; clamped to the layer's bounds and weighted by unit size, it
brackets the place where the walk stops. Only the units inside the bracket are sorted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from trisparse.sparse_ops.sort_keys import PRUNED_KEY, sort_keys
from trisparse.sparse_ops.units import check_lengths

_SHIFT = 18  # leading bits: sign, exponent and 5 of the mantissa
_BINS = 1 << (32 - _SHIFT)


def _keys(scores: Tensor, pruned: Tensor) -> Tensor:
    keys = sort_keys(scores).view(-1)
    if not pruned.any():
        return keys
    # masked_fill in three vectorised passes: all ones, then PRUNED_KEY, where the unit is gone
    gone = pruned.contiguous().view(-1).view(torch.int8).neg().to(torch.int32)
    return (keys | gone).bitwise_xor_(gone.bitwise_and_(~PRUNED_KEY))


def _bins(keys: Tensor) -> Tensor:
    return (keys >> _SHIFT).add_(_BINS // 2)


def _walk(ranks: Tensor, sizes: Tensor, lo: Tensor, hi: Tensor, start: int, target: int) -> Tensor:
    """Which candidates the walk takes, in order: rank in the layer within bounds, until the target is met."""
    open_ = (ranks >= lo) & (ranks < hi)
    gone = start + torch.cumsum(sizes * open_, 0)
    stop = open_ & (2 * (gone - sizes) + sizes >= 2 * target)
    return open_ & (torch.cumsum(stop, 0) == 0)


def _count_pruned(
    keys: list[Tensor], bins: list[Tensor], histogram: Tensor, sizes: Tensor, lo: Tensor, hi: Tensor, target: int
) -> Tensor:
    """How many units of each layer the walk prunes, int64 `[layers]`."""
    below = torch.cumsum(histogram, 1)  # [layers, bins], the units in this bin or a lower one
    gone = (below.clamp(lo[:, None], hi[:, None]) * sizes[:, None]).sum(0)

    def first_bin_past(size: int) -> int:  # the walk passes a unit of this size while gone < target - size / 2
        return int(torch.searchsorted(2 * gone, torch.tensor(2 * target - size)))

    first, last = first_bin_past(int(sizes.max())), first_bin_past(int(sizes.min()))
    if first >= _BINS:
        return below[:, -1].clamp(lo, hi)
    before = below[:, first] - histogram[:, first]

    candidates, layers = [], []
    for index, (key, bin_) in enumerate(zip(keys, bins, strict=True)):
        inside = key[bin_ == first if first == last else (bin_ >= first) & (bin_ <= last)]
        candidates.append(inside.cpu())
        layers.append(torch.full((len(inside),), index))
    key, layer = torch.cat(candidates), torch.cat(layers)
    order = torch.argsort(key, stable=True)
    layer = layer[order]
    by_layer = torch.argsort(layer, stable=True)
    counts = torch.bincount(layer, minlength=len(keys))
    starts = torch.cumsum(counts, 0) - counts
    ranks = torch.empty_like(layer)
    ranks[by_layer] = torch.arange(len(layer)) - starts[layer[by_layer]] + before[layer[by_layer]]

    floor = before.clamp(lo, hi)
    taken = _walk(ranks, sizes[layer], floor[layer], hi[layer], int((floor * sizes).sum()), target)
    return floor + torch.bincount(layer[taken], minlength=len(keys))


def _lowest(key: Tensor, bins: Tensor, histogram: Tensor, count: int) -> Tensor:
    """Mask that is False on the `count` lowest keys, the lower index first in a tie."""
    if count <= 0 or count >= key.numel():
        return torch.full_like(key, count <= 0, dtype=torch.bool)
    below = torch.cumsum(histogram, 0)
    edge = int(torch.searchsorted(below, torch.tensor(count)))
    keep = bins >= edge
    inside = (bins == edge).nonzero()[:, 0]
    order = torch.argsort(key[inside], stable=True)
    keep[inside[order[: count - int(below[edge] - histogram[edge])]]] = False
    return keep


def select_units_reference(
    scores: Sequence[Tensor],
    pruned: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    target: int,
) -> list[Tensor]:
    """Plain torch; see `select_units`."""
    if not scores:
        return []
    keys = [_keys(s, p) for s, p in zip(scores, pruned, strict=True)]
    bins = [_bins(key) for key in keys]
    histogram = torch.stack([torch.bincount(b, minlength=_BINS).cpu() for b in bins])
    bounds = (torch.tensor(lo), torch.tensor(hi))
    counts = _count_pruned(keys, bins, histogram, torch.tensor(sizes), *bounds, target).tolist()
    return [
        _lowest(key, bin_, row, count).view(score.shape)
        for key, bin_, row, count, score in zip(keys, bins, histogram, counts, scores, strict=True)
    ]


def select_units(
    scores: Sequence[Tensor],
    pruned: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Sequence[int],
    hi: Sequence[int],
    target: int,
) -> list[Tensor]:
    """Choose which units of all layers stay, so that `target` weights go.

    Units are ordered by (already pruned first, score, layer, index). Every layer gives up its `lo`
    first units; the rest follow in that order, layers with `hi` units gone skipped, while
    gone + size / 2 < target, where gone counts weights. So bounds win over the target, and the target is
    otherwise met within half the next unit. NaN counts as higher than inf.

    Args:
        scores: of any float dtype and shape, one value a unit, high = keep.
        pruned: bool, shaped like `scores`, True = gone already.
        sizes: weights that go with one unit of each layer, >= 1.
        lo: units that each layer gives up at least; no fewer than are pruned already.
        hi: units that each layer gives up at most, lo <= hi <= units.
        target: weights to remove in all layers together.

    Returns:
        bool masks shaped like `scores`, True = kept.

    Raises:
        ValueError: shapes or bounds that do not fit.
    """
    check_lengths(scores=scores, pruned=pruned, sizes=sizes, lo=lo, hi=hi)
    for i, (score, gone, size, low, high) in enumerate(zip(scores, pruned, sizes, lo, hi, strict=True)):
        if gone.shape != score.shape or gone.dtype != torch.bool:
            raise ValueError(f"pruned[{i}]: want bool {list(score.shape)}, got {gone.dtype} {list(gone.shape)}")
        if not 0 <= low <= high <= score.numel():
            raise ValueError(f"lo[{i}], hi[{i}]: want 0 <= lo <= hi <= {score.numel()}, got {low}, {high}")
        if size < 1:
            raise ValueError(f"sizes[{i}]: want at least 1 weight a unit, got {size}")
    return select_units_reference(scores, pruned, sizes, lo, hi, target)
