"""Device functions that are NVIDIA's alone: sparse tensor cores on fragments that every thread holds one number of.

A fragment is a tuple of `[threads]` tensors, one number a thread, so thread `i` of such a tensor is thread `i` of the
program. With lane = 4 * g + t, `mma_sp` multiplies 16 rows of 8 quads by 32 columns of 8 tokens (PTX ISA, mma.sp
m16n8k32); of W, x and the sum a lane holds

    a     the stored pairs of slot t in rows g and g + 8, then of slot t + 4 in both
    b     of token g places 2 * (t % 2) and the next of slots t // 2, 2 + t // 2, 4 + t // 2, 6 + t // 2
    e     a nibble a slot: of row g in 16 bits, of row g + 8 above; lanes 2 * SELECTOR and the next, slots 0-3 and 4-7
    sum   rows g and g + 8, of both tokens 2 * t and 2 * t + 1

Which quads of a row are the slots is free, as long as W, its nibbles and x agree: `nibbles_of` and what loads x take
16 quads for two products, slot s of product m being quad 4 * (s % 4) + 2 * m + s // 4, so that a lane's pairs of both
are 16 bytes of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from trisparse.kernels.gpu.quads import metadata_of, nibbles_to_indices, shift_of, word_of

_VALID = tl.constexpr(0x4444)  # nibbles that tensor cores take, for zeros


@triton.jit
def load_16_bytes(address, inside):
    """Four integers from where an integer says, a multiple of 16; zeros where `inside` is zero."""
    return tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.b32 p, $5, 0; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; "
        "@p ld.global.nc.v4.b32 {$0, $1, $2, $3}, [$4]; }",
        "=r,=r,=r,=r,l,r", [address, inside], dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def mma_sp(a0, a1, a2, a3, b0, b1, b2, b3, e, c0, c1, c2, c3, SELECTOR: tl.constexpr, BF16: tl.constexpr):
    """The sum `c` and a product; operands are pairs of values of 16 bits."""
    DTYPE: tl.constexpr = "bf16" if BF16 else "f16"
    NAME: tl.constexpr = "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." + DTYPE + "." + DTYPE + ".f32"
    OPERANDS: tl.constexpr = " {$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9, $10, $11}, {$13, $14, $15, $16}, $12, "
    return tl.inline_asm_elementwise(
        NAME + OPERANDS + ("0x1;" if SELECTOR else "0x0;"), "=f,=f,=f,=f,r,r,r,r,r,r,r,r,r,f,f,f,f",
        [a0, a1, a2, a3, b0, b1, b2, b3, e, c0, c1, c2, c3],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32), is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def add_products(sums, a, b, e, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr, BF16: tl.constexpr):
    """Sums of which fragment C has grown by both products of the A-th 64 columns of W and the B-th of x."""
    c0, c1, c2, c3 = mma_sp(
        a[8 * A], a[8 * A + 4], a[8 * A + 1], a[8 * A + 5], b[8 * B], b[8 * B + 1], b[8 * B + 2], b[8 * B + 3],
        e[A], sums[4 * C], sums[4 * C + 1], sums[4 * C + 2], sums[4 * C + 3], 0, BF16,
    )  # fmt: skip
    part = mma_sp(
        a[8 * A + 2], a[8 * A + 6], a[8 * A + 3], a[8 * A + 7], b[8 * B + 4], b[8 * B + 5], b[8 * B + 6], b[8 * B + 7],
        e[A], c0, c1, c2, c3, 1, BF16,
    )  # fmt: skip
    return sums[: 4 * C] + part + sums[4 * C + 4 :]


@triton.jit
def as_one_tensor(sums, C: tl.constexpr):
    """Fragment C, `[threads, row, token]`."""
    return tl.join(tl.join(sums[4 * C], sums[4 * C + 2]), tl.join(sums[4 * C + 1], sums[4 * C + 3]))


@triton.jit
def pair_of(t, i: tl.constexpr):
    """Of 32 pairs of columns the one that register i of b is, registers 4 to 7 being the second product's."""
    slot = i % 4 * 2 + t // 2
    return (slot % 4 * 4 + i // 4 * 2 + slot // 4) * 2 + t % 2


@triton.jit
def nibbles_of(packed_ptr, row, t, step, inside, padded_rows, padded_cols, LAYOUT: tl.constexpr):
    """`e` of 64 columns from step * 64 on: lanes t hold nibbles of product t // 2 and rows `row` and `row` + 8."""
    words_ptr = metadata_of(packed_ptr, padded_rows, padded_cols, tl.int16)
    row, rows, cols = row.to(tl.uint32), padded_rows, padded_cols
    if LAYOUT == "cslt_sm90":  # 16 bits of a word are quads 4 apart of both rows, by turns
        both = tl.zeros(row.shape, tl.uint32)
        for i in tl.static_range(2):
            where = word_of(row, (step * 2 + i).to(tl.uint32), rows, cols, LAYOUT) * 4 + t
            found = tl.load(words_ptr + where, mask=inside, other=_VALID)
            both |= (found.to(tl.uint32) & 0xFFFF) << (16 * i)
        both = (both & 0xF00FF00F) | ((both & 0x00F000F0) << 4) | ((both >> 4) & 0x00F000F0)
        both = (both & 0xFF0000FF) | ((both & 0x0000FF00) << 8) | ((both >> 8) & 0x0000FF00)
        return both.to(tl.int32, bitcast=True)
    e = tl.zeros(row.shape, tl.int32)
    for i in tl.static_range(8):
        where = word_of(row + i // 4 * 8, (step * 4 + i % 4).to(tl.uint32), rows, cols, LAYOUT)
        found = tl.load(words_ptr + where, mask=inside, other=_VALID).to(tl.int32)
        nibble = (found >> shift_of(0, t, LAYOUT)) & 0xF
        e |= nibbles_to_indices(nibble, LAYOUT) << (4 * i)
    return e
