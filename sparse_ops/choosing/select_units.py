"""Select the units to prune: the lowest scores over all layers, exactly, under bounds for each layer.

Fast without a full sort. A histogram of the keys' leading bits, one row a layer, says how many units
each layer would give up at any threshold; clamped to the layer's bounds and weighted by unit size, it
brackets the place where the walk stops. Only the units inside the bracket are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trisparse.kernels.cpu.select_units import BINS, SHIFT, CompiledUnits, fits
from trisparse.kernels.plan import plan_selection
from trisparse.sparse_ops.checks import check_device, check_dtype, check_lengths
from trisparse.sparse_ops.choosing.plan import Plan
from trisparse.sparse_ops.choosing.select_by_sorting import select_by_sorting
from trisparse.sparse_ops.choosing.sort_keys import unit_keys
from trisparse.sparse_ops.library import define, nothing

_FEW = 1 << 16  # units in all, up to which sorting all of them is faster than counting


class _Units(Protocol):
    """Units of layers: histograms of their keys, keys of some bins, and masks to be written."""

    histogram: Tensor

    def collect(self, first: int, last: int) -> list[Tensor]: ...

    def prune(self, counts: Sequence[int]) -> None: ...


class _PlainUnits:
    """`CompiledUnits` in plain torch."""

    def __init__(self, scores: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self._masks = masks
        self._keys = [unit_keys(score, mask) for score, mask in zip(scores, masks, strict=True)]
        self._bins = [(key >> SHIFT).add_(BINS // 2) for key in self._keys]
        self.histogram = torch.stack([torch.bincount(bins, minlength=BINS) for bins in self._bins])

    def collect(self, first: int, last: int) -> list[Tensor]:
        return [
            key[bins == first if first == last else (bins >= first) & (bins <= last)].cpu()
            for key, bins in zip(self._keys, self._bins, strict=True)
        ]

    def prune(self, counts: Sequence[int]) -> None:
        for key, bins, row, mask, count in zip(
            self._keys, self._bins, self.histogram, self._masks, counts, strict=True
        ):
            if count > int(row[0]):
                mask.copy_(_lowest(key, bins, row, count).view(mask.shape))


def _walk(ranks: Tensor, sizes: Tensor, lo: Tensor, hi: Tensor, start: int, target: int) -> Tensor:
    """Which candidates the walk takes, in order: rank in the layer within bounds, until the target is met."""
    open_ = (ranks >= lo) & (ranks < hi)
    gone = start + torch.cumsum(sizes * open_, 0)
    stop = open_ & (2 * (gone - sizes) + sizes >= 2 * target)
    return open_ & (torch.cumsum(stop, 0) == 0)


def _count_pruned(units: _Units, sizes: Tensor, lo: Tensor, hi: Tensor, target: int) -> Tensor:
    """How many units of each layer the walk prunes, int64 `[layers]`."""
    if 2 * int((lo * sizes).sum()) + int(sizes.min()) >= 2 * target:
        return lo
    first, last, is_one_size = 0, BINS - 1, bool((sizes == sizes[0]).all())
    before = torch.zeros_like(lo)
    if int(units.histogram.sum()) > _FEW:
        below = torch.cumsum(units.histogram, 1)  # [layers, bins], the units in this bin or a lower one
        clamped = below.clamp_(lo[:, None], hi[:, None])
        gone = clamped.sum(0) * sizes[0] if is_one_size else (clamped * sizes[:, None]).sum(0)

        def first_bin_past(size: int) -> int:  # the walk passes a unit of this size while gone < target - size / 2
            return int(torch.searchsorted(2 * gone, torch.tensor(2 * target - size, device="cpu")))

        first, last = first_bin_past(int(sizes.max())), min(first_bin_past(int(sizes.min())), BINS - 1)
        if first >= BINS:
            return clamped[:, -1]
        before = units.histogram[:, :first].sum(1)

    candidates = units.collect(first, last)
    is_free = bool((before >= lo).all() & (before + units.histogram[:, first] <= hi).all())
    if first == last and is_free and is_one_size:
        return before + _share(candidates, int(sizes[0]), target - int((before * sizes).sum()))
    key = torch.cat(candidates)
    lengths = torch.tensor([len(part) for part in candidates], device="cpu")
    layer = torch.repeat_interleave(torch.arange(len(candidates), device="cpu"), lengths)
    order = torch.argsort(key, stable=True)
    layer = layer[order]
    by_layer = torch.argsort(layer, stable=True)
    counts = torch.bincount(layer, minlength=len(candidates))
    starts = torch.cumsum(counts, 0) - counts
    ranks = torch.empty_like(layer)
    ranks[by_layer] = torch.arange(len(layer), device="cpu") - starts[layer[by_layer]] + before[layer[by_layer]]

    floor = before.clamp(lo, hi)
    taken = _walk(ranks, sizes[layer], floor[layer], hi[layer], int((floor * sizes).sum()), target)
    return floor + torch.bincount(layer[taken], minlength=len(candidates))


def _share(candidates: Sequence[Tensor], size: int, target: int) -> Tensor:
    """How many of each layer's keys are among the lowest that weigh `target`, units of one size and without bounds."""
    every = torch.cat(list(candidates))
    count = min(max(-((size - 2 * target) // (2 * size)), 0), len(every))
    if not count:
        return torch.zeros(len(candidates), dtype=torch.int64, device="cpu")
    edge = torch.kthvalue(every, count).values
    lower, equal = (torch.stack([part.sum() for part in parts]) for parts in (
        [part < edge for part in candidates], [part == edge for part in candidates],
    ))  # fmt: skip
    left = count - int(lower.sum())  # ties go to the first layers
    return lower + (torch.cumsum(equal, 0).clamp(max=left) - (torch.cumsum(equal, 0) - equal).clamp(max=left))


def _lowest(key: Tensor, bins: Tensor, histogram: Tensor, count: int) -> Tensor:
    """Mask that is False on the `count` lowest keys, the lower index first in a tie."""
    if count <= 0 or count >= key.numel():
        return torch.full_like(key, count <= 0, dtype=torch.bool)
    below = torch.cumsum(histogram, 0)
    edge = int(torch.searchsorted(below, torch.tensor(count, device="cpu")))
    keep = bins >= edge
    inside = (bins == edge).nonzero()[:, 0]
    order = torch.argsort(key[inside], stable=True)
    keep[inside[order[: count - int(below[edge] - histogram[edge])]]] = False
    return keep


def select_units_reference(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Tensor,
    hi: Tensor,
    targets: Tensor,
) -> None:
    """Plain torch, on the CPU; see `select_units`."""
    if scores:
        _select(_PlainUnits, scores, masks, sizes, lo, hi, targets)


def _select(make, scores, masks, sizes, lo, hi, targets) -> None:
    """One walk over all layers, or one for each; all arguments are on the CPU."""
    if len(targets) == len(scores) > 1:
        for i in range(len(scores)):
            one = slice(i, i + 1)
            _select(make, scores[one], masks[one], sizes[one], lo[one], hi[one], targets[one])
        return
    units = make(scores, masks)
    numbers = torch.tensor([mask.numel() for mask in masks], device="cpu")
    lo = torch.minimum(torch.maximum(lo, units.histogram[:, 0]), numbers)  # the first bin is of those that are gone
    hi = torch.minimum(torch.maximum(hi, lo), numbers)
    units.prune(_count_pruned(units, torch.tensor(sizes, device="cpu"), lo, hi, int(targets)).tolist())


def _reference(scores, masks, sizes, lo, hi, targets, plan) -> None:
    copies = [mask.cpu() for mask in masks]  # on the CPU the masks themselves
    select_units_reference([score.cpu() for score in scores], copies, sizes, lo.cpu(), hi.cpu(), targets.cpu())
    for mask, copy in zip(masks, copies, strict=True):
        if mask is not copy:
            mask.copy_(copy)


def _on_cpu(scores, masks, sizes, lo, hi, targets, plan) -> None:
    if not scores:
        return
    if fits(scores, masks):
        _select(CompiledUnits, scores, masks, sizes, lo, hi, targets)
    else:
        select_units_reference(scores, masks, sizes, lo, hi, targets)


def _kernel(scores, masks, sizes, lo, hi, targets, plan) -> None:
    if len(targets) < len(scores) and len(set(sizes)) > 1:
        select_by_sorting(scores, masks, sizes, lo, hi, targets)
        return
    from trisparse.kernels.gpu.select_units import select_units

    select_units([score.float().contiguous() for score in scores], masks, sizes, lo, hi, targets, plan)


_call = define(
    "select_units(Tensor[] scores, Tensor(a!)[] masks, int[] sizes, Tensor lo, Tensor hi, Tensor targets, "
    "Tensor[] plan) -> ()",
    _reference, _kernel, nothing, _on_cpu,
)  # fmt: skip


def select_units(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Tensor,
    hi: Tensor,
    targets: Tensor,
    plan: Plan | None = None,
) -> None:
    """Choose which units of all layers stay, so that the target's weights go; what is gone stays gone.

    Units are ordered by (already pruned first, score, layer, index). Every layer gives up its `lo`
    first units; the rest follow in that order, layers with `hi` units gone skipped, while
    gone + size / 2 < target, where gone counts weights. So bounds win over the target, and the target is
    otherwise met within half the next unit. NaN counts as higher than inf.

    On CUDA nothing waits for the device. Row and column units of different sizes, which are few, are sorted
    by torch there; all others are counted.

    Args:
        scores: of any float dtype and shape, one value a unit, high = keep.
        masks: bool, contiguous, shaped like `scores`, True = kept; changed in place.
        sizes: weights that go with one unit of each layer, >= 1.
        lo: int64 `[layers]`, units that each layer gives up at least; never fewer than are gone already.
        hi: int64 `[layers]`, units that each layer gives up at most; never fewer than `lo`.
        targets: int64, weights to remove: `[1]` in all layers together, or `[layers]` in each by itself.
        plan: keeps what need be done only once; see `Plan`.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: masks that are not contiguous bool, or bounds and targets that are not int64.
    """
    (plan or Plan()).check("select_units", lambda: _check(scores, masks, sizes, lo, hi, targets))
    if not scores:
        return
    tables = []
    if plan and all(score.dtype == torch.float32 and score.is_contiguous() for score in scores):
        tables = plan.tables(
            "select_units", lambda old, found: plan_selection(scores, masks, sizes, old, found), scores, masks
        )
    _call(scores, masks, sizes, lo, hi, targets, tables)


def _check(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Tensor,
    hi: Tensor,
    targets: Tensor,
) -> None:
    check_lengths(scores=scores, masks=masks, sizes=sizes, lo=lo, hi=hi)
    check_device(scores=scores, masks=masks, lo=lo, hi=hi, targets=targets)
    for i, (score, mask, size) in enumerate(zip(scores, masks, sizes, strict=True)):
        check_dtype(f"scores[{i}]", score)
        if mask.shape != score.shape:
            raise ValueError(f"masks[{i}]: want {list(score.shape)} like its scores, got {list(mask.shape)}")
        if mask.dtype != torch.bool or not mask.is_contiguous():
            raise TypeError(f"masks[{i}]: want contiguous torch.bool, got {mask.dtype}")
        if size < 1:
            raise ValueError(f"sizes[{i}]: want at least 1 weight a unit, got {size}")
    for name, tensor in (("lo", lo), ("hi", hi), ("targets", targets)):
        if tensor.dtype != torch.int64 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise TypeError(
                f"{name}: want contiguous torch.int64 of one dimension, got {tensor.dtype} {list(tensor.shape)}"
            )
    if len(targets) not in (1, len(scores)):
        raise ValueError(f"targets: want 1 value or {len(scores)}, one a layer, got {len(targets)}")
