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


_TABLES = {layout: _as_one_number(layouts_24.nibble_table(layout)) for layout in QUADS}


@triton.constexpr_function
def _table(layout: str) -> int:
    return _TABLES[layout]


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
def stored_values(bits, x0, x1, x2, x3):
    """What is stored at the first and at the second place of a quad; zero at a place that is not kept."""
    zero = tl.zeros_like(x0)
    first = tl.where((bits & 1) != 0, x0, tl.where((bits & 2) != 0, x1, tl.where((bits & 4) != 0, x2, zero)))
    third = tl.where(((bits & 3) != 0) & ((bits & 4) != 0), x2, zero)
    second = tl.where((bits & 8) != 0, x3, tl.where((bits & 3) == 3, x1, third))
    return first, second


@triton.jit
def as_one_integer(first, second):
    """Two values of 16 bits as they lie in memory."""
    low = first.to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (second.to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def metadata_of(packed_ptr, padded_rows, padded_cols, LAYOUT: tl.constexpr):
    """Pointer to the words behind the values of a packed matrix, which are of 16 bits, or integers of two."""
    BYTES: tl.constexpr = packed_ptr.dtype.element_ty.primitive_bitwidth // 8
    words = packed_ptr + padded_rows.to(tl.int64) * (padded_cols // BYTES)
    return words.to(tl.pointer_type(tl.int64 if LAYOUT == "cslt_sm90" else tl.int16))


@triton.jit
def store_nibbles(
    words_ptr, bits, r: tl.constexpr, line0, quad0, rows, cols, LAYOUT: tl.constexpr,
    LINES: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Write the metadata of rows 4 * line + r, `bits` being `[LINES, ACROSS]` from line0 and quad0 on."""
    RUN: tl.constexpr = quads_in_word(LAYOUT)
    nibbles = (tl.full(bits.shape, _table(LAYOUT), tl.int64) >> (bits * 4).to(tl.int64)) & 0xF
    quad = tl.arange(0, RUN)
    word = quad0 // RUN + tl.arange(0, ACROSS // RUN)
    if LAYOUT == "cslt_sm90":  # lines 2 apart, so rows 8 apart, share a word
        high = tl.arange(0, 2)
        shift = shift_of(high[:, None] * 8, quad[None, :], LAYOUT).to(tl.int64)
        nibbles = tl.reshape(nibbles, (LINES // 4, 2, 2, ACROSS // RUN, RUN)) << shift[None, :, None, None, :]
        words = tl.reshape(tl.sum(tl.sum(nibbles, 4), 1), (LINES // 2, ACROSS // RUN))
        half = tl.arange(0, LINES // 2)
        line = line0 + half // 2 * 4 + half % 2
    else:
        shift = shift_of(0, quad, LAYOUT)
        nibbles = tl.reshape(nibbles.to(tl.int32), (LINES, ACROSS // RUN, RUN)) << shift[None, None, :]
        words = tl.sum(nibbles, 2).to(tl.int16)
        line = line0 + tl.arange(0, LINES)
    offs = word_of((line * 4 + r)[:, None].to(tl.uint32), word[None, :].to(tl.uint32), rows, cols, LAYOUT)
    tl.store(words_ptr + offs, words)


@triton.jit
def load_bits(
    words_ptr, row0, quad0, rows, cols, LAYOUT: tl.constexpr, LINES: tl.constexpr, ACROSS: tl.constexpr
):  # fmt: skip
    """What is kept of quads, `[LINES, ACROSS]` from row0 and quad0 on."""
    RUN: tl.constexpr = quads_in_word(LAYOUT)
    row = (row0 + tl.arange(0, LINES))[:, None]
    word = quad0 // RUN + tl.arange(0, ACROSS // RUN)[None, :]
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
