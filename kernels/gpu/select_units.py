"""Select units: the exact k lowest scores over all layers, under bounds for each layer, without a host's help.

Keys are integers that order like the scores (`unit_chunks`). A radix descent of four digits counts, layer by
layer, how many keys lie below each value of a digit; the counts, clamped to the layer's bounds and summed,
say in which value the walk of `trisparse.sparse_ops.select_units` stops. A layer whose bounds make it stop
elsewhere than the common threshold descends once more on its own. What is left is a threshold a layer and how
many of the units that equal it go, the lowest indices first.

All counting is in integers, so the result does not depend on the order of programs. The launches are the
same for any scores; a program that has nothing to do returns at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.gpu.access import warps
from trisparse.kernels.gpu.unit_chunks import count_digits, count_ties, write_units
from trisparse.kernels.plan import SELECTION_CHUNK, plan_selection

_BINS = tl.constexpr(256)
_LAYERS = tl.constexpr(16)  # layers at a time where one program sums over all
_SHIFTS = (24, 16, 8, 0)
_THREADS, WRITE_THREADS = 256, 512


@triton.jit
def set_limits(
    lengths, sizes, gone, low, high, targets, limits, total, want, L, LOCAL: tl.constexpr, BLOCK: tl.constexpr
):
    """Bounds no lower than what is gone; how many units go in all, or with LOCAL in each layer."""
    layer = tl.arange(0, BLOCK)
    inside = layer < L
    n = tl.load(lengths + layer, mask=inside, other=0)
    lo = tl.minimum(
        tl.maximum(tl.load(low + layer, mask=inside, other=0), tl.load(gone + layer, mask=inside, other=0)), n
    )
    hi = tl.minimum(tl.maximum(tl.load(high + layer, mask=inside, other=0), lo), n)
    tl.store(limits + layer, lo, mask=inside)
    tl.store(limits + L + layer, hi, mask=inside)
    if LOCAL:
        target = tl.load(targets + layer, mask=inside, other=0)
        size = tl.load(sizes + layer, mask=inside, other=1)
    else:
        target, size = tl.load(targets), tl.load(sizes)
    # the walk takes a unit while gone + size / 2 < target
    units = tl.maximum((2 * target + size - 1) // (2 * size), 0)
    if LOCAL:
        tl.store(want + layer, tl.minimum(tl.maximum(units, lo), hi).to(tl.int32), mask=inside)
    else:
        tl.store(total, tl.minimum(tl.maximum(units, tl.sum(lo, 0)), tl.sum(hi, 0)))


@triton.jit
def pick_common(hist, limits, total, prefixes, base, equal, L):
    """The next digit of the threshold that all layers share: the first where the clamped counts reach the total."""
    digit = tl.arange(0, _BINS)
    sums = tl.zeros((_BINS,), tl.int64)
    for first in range(0, L, _LAYERS):
        layer = first + tl.arange(0, _LAYERS)
        inside = layer < L
        rows = tl.load(hist + layer[:, None].to(tl.int64) * _BINS + digit[None, :], mask=inside[:, None], other=0)
        below = tl.load(base + layer, mask=inside, other=0)[:, None] + tl.cumsum(rows, 1)
        lo = tl.load(limits + layer, mask=inside, other=0)[:, None]
        hi = tl.load(limits + L + layer, mask=inside, other=0)[:, None]
        sums += tl.sum(tl.minimum(tl.maximum(below.to(tl.int64), lo), hi), 0)
    chosen = tl.minimum(tl.sum((sums < tl.load(total)).to(tl.int32), 0), _BINS - 1)
    for first in range(0, L, _LAYERS):
        layer = first + tl.arange(0, _LAYERS)
        inside = layer < L
        rows = tl.load(hist + layer[:, None].to(tl.int64) * _BINS + digit[None, :], mask=inside[:, None], other=0)
        below = tl.load(base + layer, mask=inside, other=0) + tl.sum(tl.where(digit[None, :] < chosen, rows, 0), 1)
        tl.store(base + layer, below, mask=inside)
        tl.store(equal + layer, tl.sum(tl.where(digit[None, :] == chosen, rows, 0), 1), mask=inside)
        prefix = (tl.load(prefixes + layer, mask=inside, other=0) << 8) | chosen
        tl.store(prefixes + layer, prefix, mask=inside)


@triton.jit
def share_out(limits, total, prefixes, base, equal, want, settled, L, BLOCK: tl.constexpr):
    """How many units each layer gives up; a layer that the common threshold does not fit starts its own descent."""
    layer = tl.arange(0, BLOCK)
    inside = layer < L
    lo = tl.load(limits + layer, mask=inside, other=0)
    hi = tl.load(limits + L + layer, mask=inside, other=0)
    below = tl.load(base + layer, mask=inside, other=0).to(tl.int64)
    ties = tl.load(equal + layer, mask=inside, other=0).to(tl.int64)
    floor = tl.minimum(tl.maximum(below, lo), hi)
    room = tl.minimum(tl.maximum(below + ties, lo), hi) - floor
    left = tl.load(total) - tl.sum(floor, 0) - (tl.cumsum(room, 0) - room)  # for this layer and those behind it
    count = floor + tl.minimum(tl.maximum(left, 0), room)
    fits = (count >= below) & (count <= below + ties)
    tl.store(want + layer, count.to(tl.int32), mask=inside)
    tl.store(settled + layer, fits.to(tl.int32), mask=inside)
    tl.store(prefixes + layer, 0, mask=inside & ~fits)
    tl.store(base + layer, 0, mask=inside & ~fits)


@triton.jit
def pick_own(hist, want, settled, prefixes, base, equal):
    """The next digit of one layer's own threshold."""
    layer = tl.program_id(0)
    if tl.load(settled + layer) == 0:
        digit = tl.arange(0, _BINS)
        row = tl.load(hist + layer.to(tl.int64) * _BINS + digit)
        below = tl.load(base + layer)
        chosen = tl.minimum(tl.sum((below + tl.cumsum(row, 0) < tl.load(want + layer)).to(tl.int32), 0), _BINS - 1)
        tl.store(base + layer, below + tl.sum(tl.where(digit < chosen, row, 0), 0))
        tl.store(equal + layer, tl.sum(tl.where(digit == chosen, row, 0), 0))
        tl.store(prefixes + layer, (tl.load(prefixes + layer) << 8) | chosen)


def select_units(
    scores: Sequence[Tensor],
    masks: Sequence[Tensor],
    sizes: Sequence[int],
    low: Tensor,
    high: Tensor,
    targets: Tensor,
    plan: Sequence[Tensor] = (),
) -> None:
    """The same launches for any scores; arguments as in `trisparse.sparse_ops.select_units`.

    Layers that share one target have units of one size.
    """
    layers = len(scores)
    if not layers:
        return
    aligned, pointers, lengths, chunks, unit_sizes = plan or plan_selection(scores, masks, sizes)
    if not len(chunks):
        return
    hist = torch.zeros((2, len(_SHIFTS), layers, 256), dtype=torch.int32, device=low.device)
    prefixes, base, equal, want, settled, gone = torch.zeros((6, layers), dtype=torch.int32, device=low.device)
    limits = torch.empty((2, layers), dtype=torch.int64, device=low.device)
    total = torch.empty(1, dtype=torch.int64, device=low.device)
    ties = torch.empty(len(chunks), dtype=torch.int32, device=low.device)
    each_chunk, vector = (len(chunks),), triton.next_power_of_2(layers)
    work, threshold = (pointers, lengths, chunks), (prefixes, want, base, equal)
    local = targets.numel() == layers

    def count(descent: int, digit: int) -> Tensor:
        counts = hist[descent, digit]
        count_digits[each_chunk](
            *work, prefixes, settled, counts, gone,
            SHIFT=_SHIFTS[digit], ALIGNED=bool(aligned), BLOCK=SELECTION_CHUNK, num_warps=warps(_THREADS),
        )  # fmt: skip
        return counts

    counts = count(0, 0)
    bounds = lengths, unit_sizes, gone, low, high, targets
    set_limits[(1,)](*bounds, limits, total, want, layers, LOCAL=local, BLOCK=vector)
    if not local:
        for digit in range(len(_SHIFTS)):
            counts = count(0, digit) if digit else counts
            pick_common[(1,)](counts, limits, total, prefixes, base, equal, layers, num_warps=warps(_THREADS))
        wide = warps(128 if vector <= 1024 else 512)
        share_out[(1,)](limits, total, prefixes, base, equal, want, settled, layers, BLOCK=vector, num_warps=wide)
    for digit in range(len(_SHIFTS)):
        counts = counts if local and not digit else count(1, digit)
        pick_own[(layers,)](counts, want, settled, prefixes, base, equal)
    count_ties[each_chunk](*work, *threshold, ties, BLOCK=SELECTION_CHUNK, num_warps=warps(_THREADS))
    write_units[each_chunk](
        *work, *threshold, ties, ALIGNED=bool(aligned), BLOCK=SELECTION_CHUNK, num_warps=warps(WRITE_THREADS)
    )
