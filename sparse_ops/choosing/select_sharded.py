"""Select the units to prune when every process holds some rows of each layer: only counts travel.

Three rounds of histograms over the digits of the keys, added up over all processes, find how many units each
layer gives up; three more find the key at which each layer's pruned units end. Then ties are shared out in the order
of ranks, which is the order of rows. All of it is integers, so every process comes to the same answer, and it is the
answer that `select_units` gives for the whole layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trisparse.sparse_ops.choosing.select_by_sorting import select_by_sorting
from trisparse.sparse_ops.choosing.sort_keys import unit_keys

_DIGITS = ((21, 11), (10, 11), (0, 10))  # shift and width of each digit of a key, the highest first


def select_units_sharded(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Tensor,
    hi: Tensor,
    targets: Tensor,
    group: dist.ProcessGroup,
) -> None:
    """`select_units` over layers whose rows are spread over the processes of a group, the first ranks' rows first.

    Args:
        scores: this process's rows, fp32, one value a unit; may be empty.
        masks: of the same shapes, bool, contiguous; changed in place.
        sizes: weights that go with one unit of each layer.
        lo, hi: int64 `[layers]`, bounds in units of whole layers.
        targets: int64, `[1]` or `[layers]`, weights to remove over all processes.
        group: the processes; all of them make this call.
    """
    if len(targets) < len(scores) and len(set(sizes)) > 1:
        _select_gathered(scores, masks, sizes, lo, hi, targets, group)
        return
    keys = [
        unit_keys(score, mask) if mask.numel() else _no_keys(mask) for score, mask in zip(scores, masks, strict=True)
    ]
    device = lo.device
    totals = torch.tensor([[mask.numel(), mask.numel() - int(mask.sum())] for mask in masks], device=device)
    dist.all_reduce(totals, group=group)
    units, gone = totals.unbind(1)
    lo = torch.minimum(torch.maximum(lo, gone), units)
    hi = torch.minimum(torch.maximum(hi, lo), units)

    # the walk takes a unit while gone + size / 2 < target: so many units in all, whatever their scores
    size = torch.tensor(sizes, device=device)
    wanted = (2 * targets + size - 1).div(2 * size, rounding_mode="floor").clamp(min=0)
    if len(targets) < len(scores):
        counts = _share(keys, lo, hi, wanted[:1], group)
    else:
        counts = wanted.clamp(lo, hi)
    _prune_lowest(keys, masks, counts, group)


def _no_keys(mask: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int32, device=mask.device)


def _histograms(keys: Sequence[Tensor], prefixes: Tensor, shift: int, width: int, group: dist.ProcessGroup) -> Tensor:
    """Over all processes, how many keys with a layer's prefix have each digit: int64 `[layers, 2 ** width]`."""
    rows = []
    for key, prefix in zip(keys, prefixes.tolist(), strict=True):
        unsigned = key.long() + 2**31
        digits = (unsigned >> shift)[unsigned >> (shift + width) == prefix] & (2**width - 1)
        rows.append(torch.bincount(digits, minlength=2**width))
    counts = torch.stack(rows)
    dist.all_reduce(counts, group=group)
    return counts


def _share(keys: Sequence[Tensor], lo: Tensor, hi: Tensor, wanted: Tensor, group: dist.ProcessGroup) -> Tensor:
    """How many units each layer gives up for `wanted` in all, int64 `[layers]`."""
    below, prefix, equal = torch.zeros_like(lo), 0, torch.zeros_like(lo)
    for shift, width in _DIGITS:
        histogram = _histograms(keys, torch.full_like(lo, prefix), shift, width, group)
        up_to = below[:, None] + torch.cumsum(histogram, 1)
        taken = up_to.clamp(lo[:, None], hi[:, None]).sum(0)
        digit = min(int(torch.searchsorted(taken, wanted)), 2**width - 1)
        equal = histogram[:, digit]
        below = up_to[:, digit] - equal
        prefix = (prefix << width) + digit
    floor = below.clamp(lo, hi)
    ties = (below + equal).clamp(lo, hi) - floor
    left = wanted - floor.sum() - (torch.cumsum(ties, 0) - ties)
    return floor + torch.minimum(left.clamp(min=0), ties)


def _prune_lowest(keys: Sequence[Tensor], masks: Sequence[Tensor], counts: Tensor, group: dist.ProcessGroup) -> None:
    """Prune the `counts` lowest units of each layer, the lower index first in a tie."""
    below, prefixes = torch.zeros_like(counts), torch.zeros_like(counts)
    for shift, width in _DIGITS:
        histogram = _histograms(keys, prefixes, shift, width, group)
        up_to = below[:, None] + torch.cumsum(histogram, 1)
        digit = torch.searchsorted(up_to, counts[:, None]).clamp_(max=2**width - 1)
        below = (up_to - histogram).gather(1, digit)[:, 0]
        prefixes = (prefixes << width) + digit[:, 0]
    edges = prefixes - 2**31

    mine = torch.stack([(key == edge).sum() for key, edge in zip(keys, edges, strict=True)])
    all_ties = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(all_ties, mine, group=group)
    before = torch.stack(all_ties)[: group.rank()].sum(0)
    ties = torch.minimum((counts - below - before).clamp(min=0), mine)
    for key, edge, tie, count, mask in zip(keys, edges, ties.tolist(), counts.tolist(), masks, strict=True):
        if not count:
            continue
        gone = key < edge
        gone[(key == edge).nonzero()[:tie, 0]] = True
        mask.view(-1).masked_fill_(gone, False)


def _select_gathered(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    lo: Tensor,
    hi: Tensor,
    targets: Tensor,
    group: dist.ProcessGroup,
) -> None:
    """Units of different sizes, such as rows of different lengths, are few: bring them all to every process."""
    whole_scores, whole_masks = ([concat_ranks(t.flatten(), group) for t in part] for part in (scores, masks))
    select_by_sorting(whole_scores, whole_masks, sizes, lo, hi, targets)
    mine = torch.tensor([mask.numel() for mask in masks], device=lo.device)
    everyones = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyones, mine, group=group)
    firsts = torch.stack(everyones)[: group.rank()].sum(0).tolist()
    for mask, whole, first in zip(masks, whole_masks, firsts, strict=True):
        mask.copy_(whole[first : first + mask.numel()].view(mask.shape))


def concat_ranks(mine: Tensor, group: dist.ProcessGroup) -> Tensor:
    """One after the other, what the ranks hold: `[n]` on each, of any n, to one `[sum of n]` on all of them."""
    numbers = mine.to(torch.uint8) if mine.dtype == torch.bool else mine
    count = torch.tensor([len(mine)], device=mine.device)
    counts = [torch.empty_like(count) for _ in range(group.size())]
    dist.all_gather(counts, count, group=group)
    lengths = torch.cat(counts).tolist()
    padded = numbers.new_zeros(max(lengths))
    padded[: len(numbers)] = numbers
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).to(mine.dtype)
