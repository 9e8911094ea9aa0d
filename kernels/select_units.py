"""Select units: the exact k lowest scores over all layers, under bounds for each layer, without a host's help.

Keys are integers that order like the scores, with units already gone the lowest. A radix descent of four
digits counts, layer by layer, how many keys lie below each value of a digit; the counts, clamped to the
layer's bounds and summed, say in which value the walk of `trisparse.sparse_ops.select_units` stops. A layer
whose bounds make it stop elsewhere than the common threshold descends once more on its own. What is left is
a threshold a layer and how many of the units that equal it go, the lowest indices first.

All counting is in integers, so the result does not depend on the order of programs. The launches are the
same for any scores; a program that has nothing to do returns at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from trisparse.kernels.access import warps
from trisparse.kernels.plan import SELECTION_CHUNK, plan_selection

_BINS = tl.constexpr(256)
_LAYERS = tl.constexpr(16)  # layers at a time where one program sums over all
_SHIFTS = (24, 16, 8, 0)
_THREADS, WRITE_THREADS = 256, 512


@triton.jit
def _read_keys(scores, masks, start, length, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """Keys of a chunk as uint32, whether each lies in the layer, and whether its unit is gone."""
    offs = start + tl.arange(0, BLOCK)
    inside = offs < length
    if FULL:
        x, kept = tl.load(scores + offs), tl.load(masks + offs)
    else:
        x, kept = tl.load(scores + offs, mask=inside, other=0.0), tl.load(masks + offs, mask=inside, other=1)
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # -0.0 is +0.0, the bits of a negative number order backwards, NaN is above inf
    key = tl.where(magnitude == 0, 0, tl.where(bits < 0, ~magnitude, bits))
    key = tl.where(magnitude > 0x7F800000, 0x7FFFFFFF, key)
    key = tl.where(kept == 0, 0, key.to(tl.uint32, bitcast=True) ^ 0x80000000)
    return key.to(tl.uint32), inside, kept == 0


@triton.jit
def _open_chunk(pointers, lengths, chunks, ALIGNED: tl.constexpr, BLOCK: tl.constexpr):
    """This program's layer, first unit, the layer's length, scores and masks, and the layer's first program."""
    item = chunks + tl.program_id(0).to(tl.int64) * 3
    layer, block, first = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    scores = tl.load(pointers + layer * 2).to(tl.pointer_type(tl.float32))
    masks = tl.load(pointers + layer * 2 + 1).to(tl.pointer_type(tl.int8))
    start = tl.multiple_of(block.to(tl.int64) * BLOCK, BLOCK)
    if ALIGNED:
        scores, masks = tl.multiple_of(scores, 16), tl.multiple_of(masks, 16)
    return layer, start, tl.load(lengths + layer), scores, masks, first


@triton.jit
def _add_histogram(hist, digit, mask):
    count = tl.histogram(digit, 256, mask=mask)
    tl.atomic_add(hist + tl.arange(0, 256), count, mask=count > 0, sem="relaxed")


@triton.jit
def _count_chunk(
    scores, masks, start, length, prefix, hist, gone,
    SHIFT: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    key, inside, pruned = _read_keys(scores, masks, start, length, FULL, BLOCK)
    digit = ((key >> SHIFT) & 0xFF).to(tl.int32)
    if SHIFT == 24:
        tl.atomic_add(gone, tl.sum((pruned & inside).to(tl.int32), 0), sem="relaxed")
        _add_histogram(hist, digit, inside)
    else:
        of_prefix = inside & ((key >> (SHIFT + 8)) == prefix)
        if tl.sum(of_prefix.to(tl.int32), 0) > BLOCK // 16:
            _add_histogram(hist, digit, of_prefix)
        else:  # few: cheaper one by one, and too few to queue for one address
            tl.atomic_add(hist + digit, 1, mask=of_prefix, sem="relaxed")


@triton.jit
def count_digits(
    pointers, lengths, chunks, prefixes, settled, hist, gone,
    SHIFT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """hist[layer, d] += keys with the layer's prefix and next digit d; at the first digit also gone[layer]."""
    layer, start, length, scores, masks, _first = _open_chunk(pointers, lengths, chunks, ALIGNED, BLOCK)
    if tl.load(settled + layer) == 0:
        prefix = tl.load(prefixes + layer).to(tl.uint32, bitcast=True)
        hist += layer.to(tl.int64) * 256
        if start + BLOCK <= length:
            _count_chunk(scores, masks, start, length, prefix, hist, gone + layer, SHIFT, True, BLOCK)
        else:
            _count_chunk(scores, masks, start, length, prefix, hist, gone + layer, SHIFT, False, BLOCK)


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


@triton.jit
def count_ties(pointers, lengths, chunks, prefixes, want, base, equal, ties, BLOCK: tl.constexpr):
    """ties[program] = units at the threshold, where only some of a layer's go."""
    layer, start, length, scores, masks, _first = _open_chunk(pointers, lengths, chunks, False, BLOCK)
    rank = tl.load(want + layer) - tl.load(base + layer)
    if (rank > 0) & (rank < tl.load(equal + layer)):
        key, inside, _pruned = _read_keys(scores, masks, start, length, False, BLOCK)
        threshold = tl.load(prefixes + layer).to(tl.uint32, bitcast=True)
        tl.store(ties + tl.program_id(0), tl.sum((inside & (key == threshold)).to(tl.int32), 0))


@triton.jit
def _write_chunk(scores, masks, start, length, threshold, rank, FULL: tl.constexpr, BLOCK: tl.constexpr):
    """keep = above the threshold, or at it but behind the first `rank` of this chunk."""
    key, inside, _pruned = _read_keys(scores, masks, start, length, FULL, BLOCK)
    at = key == threshold
    keep = key > threshold
    if rank <= 0:
        keep = keep | at
    elif rank < BLOCK:
        keep = keep | (at & (tl.cumsum(at.to(tl.int32), 0) > rank))
    offs = start + tl.arange(0, BLOCK)
    if FULL:
        tl.store(masks + offs, keep.to(tl.int8))
    else:
        tl.store(masks + offs, keep.to(tl.int8), mask=inside)


@triton.jit
def write_units(
    pointers, lengths, chunks, prefixes, want, base, equal, ties,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Masks from thresholds."""
    layer, start, length, scores, masks, first = _open_chunk(pointers, lengths, chunks, ALIGNED, BLOCK)
    threshold = tl.load(prefixes + layer).to(tl.uint32, bitcast=True)
    rank = tl.load(want + layer) - tl.load(base + layer)
    if rank >= tl.load(equal + layer):
        rank = BLOCK
    elif rank > 0:
        for before in range(first, tl.program_id(0), BLOCK):
            offs = before + tl.arange(0, BLOCK)
            rank -= tl.sum(tl.load(ties + offs, mask=offs < tl.program_id(0), other=0), 0)
    if start + BLOCK <= length:
        _write_chunk(scores, masks, start, length, threshold, rank, True, BLOCK)
    else:
        _write_chunk(scores, masks, start, length, threshold, rank, False, BLOCK)


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
