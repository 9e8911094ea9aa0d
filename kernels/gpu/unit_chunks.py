"""What `select_units` does to one chunk of one layer's units: count digits of keys, count ties, write masks.

A key orders like its score: uint32, units already gone the lowest, NaN the highest, -0.0 equal to +0.0.
"""

import triton
import triton.language as tl


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
