"""Device functions over quads: which two of four are kept, what is stored of them, and where their nibbles lie.

Four places of quads are four tensors; what is kept of a quad is an integer with bit j for place j.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType

import triton
import triton.language as tl

from trisparse.kernels import layouts_24
from trisparse.kernels.layouts_24 import QUADS


def _for_kernels(function: Callable) -> Callable:
    """The same arithmetic as a device function; the interpreter wants to see `tl` beside it."""
    assert isinstance(function, FunctionType)
    return triton.jit(FunctionType(function.__code__, {**function.__globals__, "tl": tl}, function.__name__))


word_of = _for_kernels(layouts_24.word_of)
shift_of = _for_kernels(layouts_24.shift_of)


def _as_one_number(nibbles: tuple[int, ...]) -> int:
    """16 nibbles as a signed integer of 64 bits."""
    number = sum(nibble << (4 * i) for i, nibble in enumerate(nibbles))
    return number - (number >> 63 << 64)


_INDICES = _as_one_number(layouts_24.nibble_table("cslt_sm90"))


@triton.constexpr_function
def _index_table() -> int:
    return _INDICES


@triton.constexpr_function
def quads_in_word(layout: str) -> int:
    return QUADS[layout]


@triton.jit
def _two_of(a, b, c):
    return (a & b) | (a & c) | (b & c)


@triton.jit
def best_two(k0, k1, k2, k3):
    """The two highest of four integers, in a tie the lower places."""
    b01, b02, b03 = k0 >= k1, k0 >= k2, k0 >= k3
    b12, b13, b23 = k1 >= k2, k1 >= k3, k2 >= k3
    bits = _two_of(b01, b02, b03).to(tl.int32)
    bits |= _two_of(~b01, b12, b13).to(tl.int32) << 1
    bits |= _two_of(~b02, ~b12, b23).to(tl.int32) << 2
    return bits | (_two_of(~b03, ~b13, ~b23).to(tl.int32) << 3)


@triton.jit
def best_two_ranked(k0, k1, k2, k3):
    """The same of keys with a `rank` below: minima and maxima take half of the instructions of comparisons."""
    high, other = tl.maximum(k0, k1), tl.maximum(k2, k3)
    low = tl.maximum(tl.minimum(k0, k1), tl.minimum(k2, k3))
    return (tl.maximum(high, other) | tl.maximum(tl.minimum(high, other), low)) & 0xF


@triton.constexpr_function
def rank(place: int) -> int:
    """What makes keys unique, the lower place the higher, with the place's bit below."""
    return (3 - place) << 4 | 1 << place


@triton.jit
def stored_pairs(tiles, BIT: tl.constexpr, STEP: tl.constexpr, x0, x1, x2, x3, FULL: tl.constexpr):
    """What is stored of a row or a column of 4 x 4 tiles, as integers of two values.

    Args:
        tiles: what is kept, bit column + 4 * row; from `BIT` on every `STEP` are those of the four places.
        x0, x1, x2, x3: values of 16 bits, in integers with anything above them.
        FULL: whether two of every quad are kept, or the values are zero; else zero is stored at a place not kept.
    """
    b0, b1 = (tiles & (1 << BIT)) != 0, (tiles & (1 << (BIT + STEP))) != 0
    b2, b3 = (tiles & (1 << (BIT + 2 * STEP))) != 0, (tiles & (1 << (BIT + 3 * STEP))) != 0
    if FULL:
        first, second = tl.where(b0, x0, tl.where(b1, x1, x2)), tl.where(b3, x3, tl.where(b2, x2, x1))
    else:
        zero = tl.zeros_like(x0)
        first = tl.where(b0, x0, tl.where(b1, x1, tl.where(b2, x2, zero)))
        second = tl.where(b3, x3, tl.where(b2 & (b0 | b1), x2, tl.where(b0 & b1, x1, zero)))
    return (first & 0xFFFF) | (second << 16)


@triton.jit
def transposed_tiles(tiles):
    """Bits row + 4 * column from bits column + 4 * row."""
    swap = (tiles ^ (tiles >> 3)) & 0x0A0A
    tiles = tiles ^ swap ^ (swap << 3)
    swap = (tiles ^ (tiles >> 6)) & 0x00CC
    return tiles ^ swap ^ (swap << 6)


@triton.jit
def nibbles_of(tiles, LAYOUT: tl.constexpr):
    """The nibbles of the four rows of tiles at once, as `layouts_24.nibble_table` has them of each."""
    one, three = tiles >> 1, tiles >> 3  # a row's lowest bit is place 0 in `tiles`, 1 in `one`, 3 in `three`
    neither, both = ~(tiles | one), tiles & one
    last = three | neither  # whether place 3 is stored
    if LAYOUT == "bitmask":
        b0, b1 = tiles, (one & ~tiles) | (both & ~three)
        b2, b3 = neither | ((tiles ^ one) & ~three), last
    else:
        b0, b1, b2, b3 = one & ~tiles, neither, last | both, three | ~both
    low = (b0 & 0x1111) | ((b1 & 0x1111) << 1)
    return low | ((b2 & 0x1111) << 2) | ((b3 & 0x1111) << 3)


@triton.jit
def metadata_of(packed_ptr, padded_rows, padded_cols, WORD: tl.constexpr):
    """Pointer to the `WORD`s behind the values of a packed matrix, which are of 16 bits, or integers of two."""
    BYTES: tl.constexpr = packed_ptr.dtype.element_ty.primitive_bitwidth // 8
    return (packed_ptr + padded_rows.to(tl.int64) * (padded_cols // BYTES)).to(tl.pointer_type(WORD))


@triton.jit
def _half_words(pairs, LAYOUT: tl.constexpr, LINES: tl.constexpr, ACROSS: tl.constexpr):
    """Half words of 64 bits, `[LINES / 4, line % 2, ACROSS / 8, half]`, from nibbles of quads 2k and 2k + 1."""
    two = tl.arange(0, 2)
    parts = tl.reshape(pairs & 0xF000F, (LINES // 4, 2, 2, ACROSS // 8, 2, 2))  # two lines apart are eight rows
    shift = shift_of(two[None, :, None, None, None, None] * 8, two[None, None, None, None, :, None] * 4, LAYOUT)
    return tl.sum(tl.sum(parts << shift, 4), 1)


@triton.jit
def _words(pairs, LINES: tl.constexpr, ACROSS: tl.constexpr):
    """Words of 16 bits, `[LINES, ACROSS / 4]`, from nibbles of quads 2k and 2k + 1."""
    parts = (pairs & 0xF) | ((pairs >> 12) & 0xF0)
    return tl.sum(tl.reshape(parts, (LINES, ACROSS // 4, 2)) << (tl.arange(0, 2)[None, None, :] * 8), 2)


@triton.jit
def store_metadata(
    packed_ptr, nibbles, line0, quad0, rows, cols, LAYOUT: tl.constexpr, LINES: tl.constexpr, ACROSS: tl.constexpr
):  # fmt: skip
    """Write the metadata of rows 4 * line + r; `nibbles_of` them is `[LINES, ACROSS]` from line0 and quad0 on.

    As line0 and quad0 are multiples of LINES and ACROSS, `word_of` a row is that of the first, plus what is inside.
    """
    RUN: tl.constexpr = quads_in_word(LAYOUT)
    two, four = tl.arange(0, 2), tl.arange(0, 4)
    pairs = tl.reshape(nibbles, (LINES, ACROSS // 2, 2)) << (two[None, None, :] * 16)
    pairs = tl.sum(pairs, 2)  # once for all four rows
    first = word_of((line0 * 4).to(tl.uint32), (quad0 // RUN).to(tl.uint32), rows, cols, LAYOUT)
    word = tl.arange(0, ACROSS // RUN).to(tl.uint32)
    if LAYOUT == "cslt_sm90":  # words of 64 bits in halves: rows r and r + 8, quads with the same quad % 4 // 2
        p0, p1 = _half_words(pairs, LAYOUT, LINES, ACROSS), _half_words(pairs >> 4, LAYOUT, LINES, ACROSS)
        p2, p3 = _half_words(pairs >> 8, LAYOUT, LINES, ACROSS), _half_words(pairs >> 12, LAYOUT, LINES, ACROSS)
        words = tl.reshape(tl.join(tl.join(p0, p2), tl.join(p1, p3)), (LINES // 4, 2, ACROSS // 8, 2, 4))
        line = tl.arange(0, LINES // 4)[:, None, None, None, None] * 4 + two[None, :, None, None, None]
        row = (line * 4 + four[None, None, None, None, :]).to(tl.uint32)
        offs = word_of(row, word[None, None, :, None, None], rows, cols, LAYOUT) * 2 + two[None, None, None, :, None]
        tl.store(metadata_of(packed_ptr, rows, cols, tl.int32) + first * 2 + offs, words)
    else:  # words of 16 bits: four quads of a row
        p0, p1 = _words(pairs, LINES, ACROSS), _words(pairs >> 4, LINES, ACROSS)
        p2, p3 = _words(pairs >> 8, LINES, ACROSS), _words(pairs >> 12, LINES, ACROSS)
        words = tl.reshape(tl.join(tl.join(p0, p2), tl.join(p1, p3)), (LINES, ACROSS // 4, 4)).to(tl.int16)
        row = (tl.arange(0, LINES)[:, None, None] * 4 + four[None, None, :]).to(tl.uint32)
        offs = word_of(row, word[None, :, None], rows, cols, LAYOUT)
        tl.store(metadata_of(packed_ptr, rows, cols, tl.int16) + first + offs, words)


@triton.jit
def load_bits(
    packed_ptr, row0, quad0, rows, cols, LAYOUT: tl.constexpr, LINES: tl.constexpr, ACROSS: tl.constexpr
):  # fmt: skip
    """What is kept of quads, `[LINES, ACROSS]` from row0 and quad0 on."""
    RUN: tl.constexpr = quads_in_word(LAYOUT)
    row = (row0 + tl.arange(0, LINES))[:, None]
    word = quad0 // RUN + tl.arange(0, ACROSS // RUN)[None, :]
    words_ptr = metadata_of(packed_ptr, rows, cols, tl.int64 if LAYOUT == "cslt_sm90" else tl.int16)
    words = tl.load(words_ptr + word_of(row.to(tl.uint32), word.to(tl.uint32), rows, cols, LAYOUT))
    shift = shift_of(row[:, :, None], tl.arange(0, RUN)[None, None, :], LAYOUT)
    if LAYOUT != "cslt_sm90":
        words = words.to(tl.int32)
    nibbles = (words[:, :, None] >> shift.to(words.dtype)).to(tl.int32) & 0xF
    nibbles = tl.reshape(nibbles, (LINES, ACROSS))
    if LAYOUT == "bitmask":
        return nibbles
    return (1 << (nibbles & 3)) | (1 << (nibbles >> 2))


@triton.jit
def nibbles_to_indices(nibbles, LAYOUT: tl.constexpr):
    """Nibbles of a layout as the places of the two that are stored, `first | second << 2`."""
    if LAYOUT == "bitmask":
        return (tl.full(nibbles.shape, _index_table(), tl.int64) >> (nibbles * 4).to(tl.int64)).to(tl.int32) & 0xF
    return nibbles


@triton.jit
def spread(bits, first, second):
    """The four places of quads from what is stored of them; `bits` has two places for every quad."""
    zero = tl.zeros_like(first)
    x0 = tl.where((bits & 1) != 0, first, zero)
    x1 = tl.where((bits & 2) != 0, tl.where((bits & 1) != 0, second, first), zero)
    x2 = tl.where((bits & 4) != 0, tl.where((bits & 8) != 0, first, second), zero)
    return x0, x1, x2, tl.where((bits & 8) != 0, second, zero)


@triton.jit
def join_quads(x0, x1, x2, x3, LINES: tl.constexpr, ACROSS: tl.constexpr):
    """Four places of quads, `[LINES, ACROSS]` each, side by side: `[LINES, ACROSS * 4]`."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (LINES, ACROSS * 4))
