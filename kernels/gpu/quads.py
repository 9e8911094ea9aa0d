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
_INDICES = _TABLES["cslt_sm90"]


@triton.constexpr_function
def _table(layout: str) -> int:
    return _TABLES[layout]


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
def metadata_of(packed_ptr, padded_rows, padded_cols, WORD: tl.constexpr):
    """Pointer to the `WORD`s behind the values of a packed matrix, which are of 16 bits, or integers of two."""
    BYTES: tl.constexpr = packed_ptr.dtype.element_ty.primitive_bitwidth // 8
    return (packed_ptr + padded_rows.to(tl.int64) * (padded_cols // BYTES)).to(tl.pointer_type(WORD))


@triton.jit
def store_metadata(
    packed_ptr, b0, b1, b2, b3, line0, quad0, rows, cols,
    LAYOUT: tl.constexpr, LINES: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    """Write the metadata of rows 4 * line + r, `b`r being `[LINES, ACROSS]` from line0 and quad0 on."""
    bits = tl.join(tl.join(b0, b2), tl.join(b1, b3))  # together, so that threads exchange them at once
    nibbles = (tl.full(bits.shape, _table(LAYOUT), tl.int64) >> (bits * 4).to(tl.int64)).to(tl.int32) & 0xF
    two, four = tl.arange(0, 2), tl.arange(0, 4)
    if LAYOUT == "cslt_sm90":  # words of 64 bits in halves: rows r and r + 8, quads with the same quad % 4 // 2
        high = two[None, :, None, None, None, None, None, None]  # lines 2 apart are rows 8 apart
        quad = two[None, None, None, None, :, None, None, None] * 4 + two[None, None, None, None, None, None, :, None]
        nibbles = tl.reshape(nibbles, (LINES // 4, 2, 2, ACROSS // 8, 2, 2, 2, 4)) << shift_of(high * 8, quad, LAYOUT)
        words = tl.sum(tl.sum(tl.sum(nibbles, 6), 4), 1)  # [LINES / 4, 2, ACROSS / 8, half, r]
        line = line0 + tl.arange(0, LINES // 4)[:, None, None, None, None] * 4 + two[None, :, None, None, None]
        word = (quad0 // 8 + tl.arange(0, ACROSS // 8))[None, None, :, None, None]
        row = line * 4 + four[None, None, None, None, :]
        offs = word_of(row.to(tl.uint32), word.to(tl.uint32), rows, cols, LAYOUT) * 2 + two[None, None, None, :, None]
        tl.store(metadata_of(packed_ptr, rows, cols, tl.int32) + offs, words)
    else:  # words of 16 bits: four quads of a row
        shift = shift_of(0, four, LAYOUT)[None, None, :, None]
        nibbles = tl.reshape(nibbles, (LINES, ACROSS // 4, 4, 4)) << shift
        words = tl.sum(nibbles, 2).to(tl.int16)  # [LINES, ACROSS / 4, r]
        row = (line0 + tl.arange(0, LINES))[:, None, None] * 4 + four[None, None, :]
        word = (quad0 // 4 + tl.arange(0, ACROSS // 4))[None, :, None]
        offs = word_of(row.to(tl.uint32), word.to(tl.uint32), rows, cols, LAYOUT)
        tl.store(metadata_of(packed_ptr, rows, cols, tl.int16) + offs, words)


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
